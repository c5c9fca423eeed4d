"""One module per paper, named after the method, and the data and the demonstration that come with them."""
