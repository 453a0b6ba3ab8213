"""How scans reach the inbox over the network, and how results leave. Each needs the extra `serve`."""
