"""What things cost here, each beside a peer measured in the same run."""
