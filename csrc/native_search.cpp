// Queries of an open index, from Python with nothing between: numpy's arrays by their C API, torch's tensors by the
// functions that DLPack has for this.
#include "native.h"
#include <ATen/dlpack.h>
#include <pybind11/numpy.h>
#include <cmath>
#include <utility>
#include <vector>
#include "ann_open.h"

namespace tamis {
namespace {

namespace py = pybind11;

struct Given {
  const float* x;  // null: not of float32, contiguous and [d] or [count, d]
  int dims;
  int64_t count;
};

Given given(const py::array& queries, int64_t d) {
  using Floats = py::array_t<float, py::array::c_style>;
  const int dims = int(queries.ndim());
  const bool fits = py::isinstance<Floats>(queries) && (dims == 1 || dims == 2) && queries.shape(dims - 1) == d;
  return {fits ? static_cast<const float*>(queries.data()) : nullptr, dims, dims == 2 ? queries.shape(0) : 1};
}

Given given(const DLTensor& queries, int64_t d) {
  const int dims = queries.ndim;
  const int64_t* const strides = queries.strides;
  const bool fits = queries.device.device_type == kDLCPU && queries.dtype.code == kDLFloat &&
                    queries.dtype.bits == 32 && queries.dtype.lanes == 1 && (dims == 1 || dims == 2) &&
                    queries.shape[dims - 1] == d && (!strides || d == 1 || strides[dims - 1] == 1) &&
                    (!strides || dims == 1 || queries.shape[0] == 1 || strides[0] == d);
  const char* const at = static_cast<const char*>(queries.data) + queries.byte_offset;
  return {fits ? reinterpret_cast<const float*>(at) : nullptr, dims, dims == 2 ? queries.shape[0] : 1};
}

bool fits(const OpenIndex& index, const Asked& asked) {
  if (!asked.queries || asked.count < 1 || asked.k < 1 || asked.leaves < 1 || asked.rerank < 1) return false;
  if (asked.lookup == Lookup::u16 && index.ivf.codes.parts > kMostExact) return false;
  for (int64_t i = 0; i < asked.count * index.ivf.d; ++i)
    if (!std::isfinite(asked.queries[i])) return false;
  return true;
}

void run(const OpenIndex& index, const Asked& asked) {
  const py::gil_scoped_release released;
  if (!index.search(index, asked)) throw std::bad_alloc();
}

py::object search_array(uintptr_t address, const py::array& queries, int64_t k, int64_t leaves, int64_t rerank,
                        bool u16) {
  const OpenIndex& index = *reinterpret_cast<const OpenIndex*>(address);
  const Given some = given(queries, index.ivf.d);
  Asked asked = {some.x, some.count, k, leaves, rerank, u16 ? Lookup::u16 : Lookup::s8, nullptr, nullptr};
  if (!fits(index, asked)) return py::none();
  const auto shape = some.dims == 1 ? std::vector<int64_t>{k} : std::vector<int64_t>{some.count, k};
  py::array_t<float> values(shape);
  py::array_t<int64_t> ids(shape);
  asked.values = values.mutable_data(), asked.ids = ids.mutable_data();
  run(index, asked);
  return py::make_tuple(values, ids);
}

struct Made {  // a tensor of the library that the functions are of
  const DLPackExchangeAPI& api;
  DLManagedTensorVersioned* tensor = nullptr;

  Made(const DLPackExchangeAPI& api, DLDataType dtype, int dims, int64_t count, int64_t k) : api(api) {
    int64_t shape[2] = {count, k};
    DLTensor like = {nullptr, {kDLCPU, 0}, dims, dtype, shape + 2 - dims, nullptr, 0};
    const auto fail = [](void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); };
    if (api.managed_tensor_allocator(&like, &tensor, nullptr, fail) != 0) throw py::error_already_set();
  }
  Made(const Made&) = delete;
  ~Made() {
    if (tensor && tensor->deleter) tensor->deleter(tensor);
  }
  void* data() const { return static_cast<char*>(tensor->dl_tensor.data) + tensor->dl_tensor.byte_offset; }
  py::object object() {
    void* made = nullptr;
    DLManagedTensorVersioned* const given = std::exchange(tensor, nullptr);
    if (api.managed_tensor_to_py_object_no_sync(given, &made) != 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(static_cast<PyObject*>(made));
  }
};

py::object search_tensor(uintptr_t address, const py::object& queries, const py::capsule& exchange, int64_t k,
                         int64_t leaves, int64_t rerank, bool u16) {
  const OpenIndex& index = *reinterpret_cast<const OpenIndex*>(address);
  const auto& api = *static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
  if (api.header.version.major != DLPACK_MAJOR_VERSION || !api.dltensor_from_py_object_no_sync) return py::none();
  DLTensor tensor;
  if (api.dltensor_from_py_object_no_sync(queries.ptr(), &tensor) != 0) {  // sparse, and the like
    PyErr_Clear();
    return py::none();
  }
  const Given some = given(tensor, index.ivf.d);
  Asked asked = {some.x, some.count, k, leaves, rerank, u16 ? Lookup::u16 : Lookup::s8, nullptr, nullptr};
  if (!fits(index, asked)) return py::none();
  Made values(api, {kDLFloat, 32, 1}, some.dims, some.count, k), ids(api, {kDLInt, 64, 1}, some.dims, some.count, k);
  asked.values = static_cast<float*>(values.data()), asked.ids = static_cast<int64_t*>(ids.data());
  run(index, asked);
  return py::make_tuple(values.object(), ids.object());
}

}  // namespace

void bind_search(py::module_& m) {
  m.def(
      "search", &search_array, py::arg("index").none(false), py::arg("queries").noconvert(), py::arg("k"),
      py::arg("leaves"), py::arg("rerank"), py::arg("u16"),
      "Queries of what the op _ivf_open gave, by its address; None where they are not float32, contiguous, finite and "
      "of [d] or [count, d].");
  m.def("search_tensor", &search_tensor, py::arg("index").none(false), py::arg("queries"), py::arg("exchange"),
        py::arg("k"), py::arg("leaves"), py::arg("rerank"), py::arg("u16"),
        "The same of a tensor, by its type's exchange functions.");
}

}  // namespace tamis
