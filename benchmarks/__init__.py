"""What is measured: one module a family, with shapes, peers and the least work. The engine is tamis.bench."""
