"""Ways of learning compared on equal terms."""
