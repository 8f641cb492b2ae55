"""What `LabelModel` is made of: factors, EM, structure, and the reasons not to trust it."""
