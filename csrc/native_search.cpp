// One query of an open index, from Python with nothing between: numpy's arrays by their C API, torch's tensors by the
// functions that DLPack has for this.
#include "native.h"
#include <ATen/dlpack.h>
#include <pybind11/numpy.h>
#include <utility>
#include <vector>
#include "ann_open.h"

namespace tamis {
namespace {

namespace py = pybind11;

struct Given {
  const float* x;  // null: not of float32, contiguous and [d] or [1, d]
  int dims;
};

Given given(const py::array& query, int64_t d) {
  using Floats = py::array_t<float, py::array::c_style>;
  const int dims = int(query.ndim());
  const bool fits =
      py::isinstance<Floats>(query) && (dims == 1 || (dims == 2 && query.shape(0) == 1)) && query.shape(dims - 1) == d;
  return {fits ? static_cast<const float*>(query.data()) : nullptr, dims};
}

Given given(const DLTensor& query, int64_t d) {
  const int dims = query.ndim;
  const bool fits = query.device.device_type == kDLCPU && query.dtype.code == kDLFloat && query.dtype.bits == 32 &&
                    query.dtype.lanes == 1 && (dims == 1 || (dims == 2 && query.shape[0] == 1)) &&
                    query.shape[dims - 1] == d && (d == 1 || !query.strides || query.strides[dims - 1] == 1);
  const char* const at = static_cast<const char*>(query.data) + query.byte_offset;
  return {fits ? reinterpret_cast<const float*>(at) : nullptr, dims};
}

bool run(const OpenIndex& index, const OneSearch& op) {
  const py::gil_scoped_release released;
  return index.search(index, op);
}

bool fits(const OpenIndex& index, const OneSearch& op) {
  if (!op.query || op.k < 1 || op.leaves < 1 || op.rerank < 1) return false;
  if (op.lookup == Lookup::u16 && index.ivf.codes.parts > kMostExact) return false;
  float zero = 0;
  for (int64_t i = 0; i < index.ivf.d; ++i) zero += op.query[i] * 0;
  return zero == 0;
}

py::object search_array(uintptr_t address, const py::array& query, int64_t k, int64_t leaves, int64_t rerank,
                        bool u16) {
  const OpenIndex& index = *reinterpret_cast<const OpenIndex*>(address);
  const Given one = given(query, index.ivf.d);
  OneSearch op = {one.x, k, leaves, rerank, u16 ? Lookup::u16 : Lookup::s8, nullptr, nullptr};
  if (!fits(index, op)) return py::none();
  const std::vector<int64_t> shape = one.dims == 1 ? std::vector<int64_t>{k} : std::vector<int64_t>{1, k};
  py::array_t<float> values(shape);
  py::array_t<int64_t> ids(shape);
  op.values = values.mutable_data(), op.ids = ids.mutable_data();
  if (!run(index, op)) throw std::bad_alloc();
  return py::make_tuple(values, ids);
}

struct Made {  // a tensor of the library that the functions are of
  const DLPackExchangeAPI& api;
  DLManagedTensorVersioned* tensor = nullptr;

  Made(const DLPackExchangeAPI& api, DLDataType dtype, int dims, int64_t k) : api(api) {
    int64_t shape[2] = {1, k};
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

py::object search_tensor(uintptr_t address, const py::object& query, const py::capsule& exchange, int64_t k,
                         int64_t leaves, int64_t rerank, bool u16) {
  const OpenIndex& index = *reinterpret_cast<const OpenIndex*>(address);
  const auto& api = *static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
  if (api.header.version.major != DLPACK_MAJOR_VERSION || !api.dltensor_from_py_object_no_sync) return py::none();
  DLTensor tensor;
  if (api.dltensor_from_py_object_no_sync(query.ptr(), &tensor) != 0) {  // sparse, and the like
    PyErr_Clear();
    return py::none();
  }
  const Given one = given(tensor, index.ivf.d);
  OneSearch op = {one.x, k, leaves, rerank, u16 ? Lookup::u16 : Lookup::s8, nullptr, nullptr};
  if (!fits(index, op)) return py::none();
  Made values(api, {kDLFloat, 32, 1}, one.dims, k), ids(api, {kDLInt, 64, 1}, one.dims, k);
  op.values = static_cast<float*>(values.data()), op.ids = static_cast<int64_t*>(ids.data());
  if (!run(index, op)) throw std::bad_alloc();
  return py::make_tuple(values.object(), ids.object());
}

}  // namespace

void bind_search(py::module_& m) {
  m.def("search", &search_array, py::arg("index").none(false), py::arg("query").noconvert(), py::arg("k"),
        py::arg("leaves"), py::arg("rerank"), py::arg("u16"),
        "One query of what the op _ivf_open gave, by its address; None where it is not float32, contiguous, finite and "
        "of [d] or [1, d].");
  m.def("search_tensor", &search_tensor, py::arg("index").none(false), py::arg("query"), py::arg("exchange"),
        py::arg("k"), py::arg("leaves"), py::arg("rerank"), py::arg("u16"),
        "The same of a tensor, by its type's exchange functions.");
}

}  // namespace tamis
