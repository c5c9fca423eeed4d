"""tamis inside other libraries, one module each, imported by name: nothing here is needed by the rest."""
