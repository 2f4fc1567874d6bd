"""Who reads whom, and with what weight: graphs, schedules, mixing matrices and their spectra. No torch, no IO."""
