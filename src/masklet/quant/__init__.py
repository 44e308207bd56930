"""How weights are stored in fewer bits: which tensors may be, and files of them."""
