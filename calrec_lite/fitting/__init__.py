"""What is fitted over a finished model, on validation users: a light user tower, and the weights of fused lists."""
