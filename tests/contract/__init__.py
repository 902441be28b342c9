"""The contract: what holds for every method with every optimizer and every scheduler, checked over one registry."""
