// Checks that bindings of ann share.
#pragma once
#include <cstring>
#include "common.h"
#include "dispatch.h"

namespace tamis {

using Maybe = std::optional<Tensor>;
using Found = std::tuple<Tensor, Tensor>;

// `what` names an argument: "tamis.pq_scan: codes". A size of -1 is any.
inline void check(const std::string& what, const Tensor& t, ScalarType dtype, const std::vector<int64_t>& sizes) {
  bool fits = t.is_cpu() && t.scalar_type() == dtype && t.is_contiguous() && t.dim() == int64_t(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = sizes[i] < 0 || t.size(i) == sizes[i];
  STD_TORCH_CHECK(fits, what, ": expected a contiguous CPU tensor of ", torch::headeronly::toString(dtype),
                  " and a shape that fits");
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The same, of floats; doubles are rounded.
inline Tensor floats(const std::string& what, const Tensor& t, const std::vector<int64_t>& sizes) {
  const Tensor x = t.scalar_type() == ScalarType::Double ? torch::stable::to(t, ScalarType::Float) : t;
  check(what, x, ScalarType::Float, sizes);
  return x;
}

// The same, of any float dtype.
inline Tensor vectors_of(const char* what, const Tensor& t, const std::vector<int64_t>& sizes) {
  if (dtype_of(what, t) == f64) return floats(what, t, sizes);
  check(what, t, t.scalar_type(), sizes);
  return t;
}

inline int bits_of(const std::string& what, int64_t centroids, int64_t parts) {
  STD_TORCH_CHECK(centroids == 16 || centroids == 64, what, ": expected 16 or 64 centroids, got ", centroids);
  const int bits = centroids == 16 ? 4 : 6, of = bits == 4 ? 2 : 4;
  STD_TORCH_CHECK(parts > 0 && parts % of == 0, what, ": expected a multiple of ", of, " parts, got ", parts);
  return bits;
}

inline Lookup lookup_of(const std::string& what, const std::string& name, int64_t parts) {
  STD_TORCH_CHECK(name == "s8" || name == "u16", what, ": lookup: expected s8 or u16, got ", name);
  STD_TORCH_CHECK(name == "s8" || parts <= kMostExact, what, ": lookup: expected s8 above ", kMostExact,
                  " parts, got u16");
  return name == "s8" ? Lookup::s8 : Lookup::u16;
}

inline Codes codes_of(const std::string& what, const Tensor& codes, int bits, int64_t parts, int64_t blocks) {
  check(what, codes, ScalarType::Byte, {blocks * block_bytes(bits, parts) + kCodesSlack});
  return {data<uint8_t>(codes), bits, parts};
}

inline void check_count(const std::string& what, int64_t n) {  // candidates keep positions in 32 bits
  STD_TORCH_CHECK(n <= UINT32_MAX, what, ": expected fewer than 2^32 vectors, got ", n);
}

inline std::vector<uint64_t> words_of(const std::string& what, const Maybe& allowed, int64_t n) {
  if (!allowed) return {};
  check(what + ": allowed", *allowed, ScalarType::Bool, {n});
  const bool* const of = data<bool>(*allowed);
  std::vector<uint64_t> words(n / 64 + 2);
  for (int64_t i = 0; i < n; ++i) words[i / 64] |= uint64_t(of[i]) << (i % 64);
  return words;
}

}  // namespace tamis
