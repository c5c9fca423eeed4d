// The activations, in the order of pysrc/tamis/sparse_mlp/reference.py.
#pragma once

namespace tamis {

enum Activation { relu, squared_relu, gelu, gelu_tanh, silu, kActivations };

}  // namespace tamis
