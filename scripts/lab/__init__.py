"""What scripts and tests need to break things: private brokers, a forwarder to cut links, waiting with a deadline."""
