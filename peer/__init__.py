"""The program: everything that touches the world (sockets, disk, processes, models, the command line)."""
