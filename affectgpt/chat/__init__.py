"""Other chat models, asked through one interface: behind a server or in this process."""
