"""What travels between peers and how it is mixed: pure code, CPU tensors and bytes, no IO.

Reading order: ``adapter`` (the vector), ``messages`` and ``wire`` (how it travels), ``events`` and ``node`` (the
protocol; ``neighbor`` and ``round`` are its memory, ``pipelines`` its numbers), ``methods`` (how numbers are made and
mixed), ``simulation`` (many nodes on a virtual clock).
"""
