"""What runs inside a training, and the child processes that need torch: the only place that imports it."""
