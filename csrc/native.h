// What tamis._native is made of.
#pragma once
#include <pybind11/pybind11.h>

namespace tamis {

void bind_search(pybind11::module_& m);

}  // namespace tamis
