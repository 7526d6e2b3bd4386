"""What tests share: models from text, and how to look at them."""
