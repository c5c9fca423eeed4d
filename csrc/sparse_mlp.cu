// Launches of the sparse MLP family's CUDA kernels.
#include "kernels/sparse_mlp/cuda.cuh"
#include "launch.h"
#include "sparse_mlp_cuda.h"

namespace tamis {
namespace {

constexpr int64_t kLongRow = 64;     // tiles, from which on blocks share a row for six launches
constexpr int64_t kChunkTiles = 16;  // at least, for each block
constexpr int64_t kBlocks = 1024;    // at most, that share rows

static_assert(kTopkSortMost == cuda::kSortMost);

template <class Format>
struct TypeOf {
  using Bits = typename Format::Bits;
  using type = Format;
};

template <class Use>
auto with_format(Dtype dtype, const Use& use) {
  switch (dtype) {
    case f32:
      return use(TypeOf<cuda::Float32>());
    case f64:
      return use(TypeOf<cuda::Float64>());
    case f16:
      return use(TypeOf<cuda::Float16>());
    default:
      return use(TypeOf<cuda::BFloat16>());
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Bits>
int64_t tiles_of(int64_t n) {  // of a row that begins at the worst place
  constexpr int64_t lanes = cuda::kLanes<Bits>;
  return ceil_div(n + lanes - 1, lanes * cuda::kThreads);
}

template <class Bits>
int64_t bins_bytes(int64_t rows) {
  return rows * cuda::kPasses<Bits> * cuda::kBins * int64_t{sizeof(unsigned long long)};
}

template <class Format, class Bits = typename Format::Bits>
cudaError_t topk_by_chunks(const Bits* x, int64_t rows, int64_t n, int64_t stride, int64_t k, Bits* values,
                           int64_t* indices, int64_t chunks, void* workspace, cudaStream_t stream) {
  if (rows > 65535 || chunks > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(rows));
  const int64_t tiles = ceil_div(tiles_of<Bits>(n), chunks), bytes = bins_bytes<Bits>(rows);
  unsigned long long* const bins = static_cast<unsigned long long*>(workspace);
  uint64_t* const counts = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + bytes);
  cudaError_t error = cudaMemsetAsync(bins, 0, bytes, stream);
  for (int pass = 0; pass < cuda::kPasses<Bits> && error == cudaSuccess; ++pass)
    error = launch(cuda::topk_digits_kernel<Format>, grid, cuda::kThreads, stream, x, n, stride, k, tiles, pass, bins);
  if (error == cudaSuccess)
    error = launch(cuda::topk_count_kernel<Format>, grid, cuda::kThreads, stream, x, n, stride, k, tiles, bins, counts);
  if (error == cudaSuccess)
    error = launch(cuda::topk_write_kernel<Format>, grid, cuda::kThreads, stream, x, n, stride, k, tiles, bins, counts,
                   values, indices);
  return error;
}

}  // namespace

int64_t topk_chunks(Dtype dtype, int64_t rows, int64_t n) {
  if (rows == 0) return 1;
  return with_format(dtype, [&](auto type) {
    const int64_t tiles = tiles_of<typename decltype(type)::Bits>(n);
    if (tiles < kLongRow || rows * 2 > kBlocks) return int64_t{1};
    const int64_t chunks = tiles / kChunkTiles;
    return chunks < kBlocks / rows ? chunks : kBlocks / rows;  // equivalent: comparison: the lesser
  });
}

int64_t topk_workspace_bytes(Dtype dtype, int64_t rows, int64_t chunks) {
  if (chunks == 1) return 0;
  return with_format(dtype, [&](auto type) {
    return bins_bytes<typename decltype(type)::Bits>(rows) + rows * chunks * 2 * int64_t{sizeof(uint64_t)};
  });
}

cudaError_t launch_topk(Dtype dtype, const void* x, int64_t rows, int64_t n, int64_t stride, int64_t k, void* values,
                        int64_t* indices, int64_t chunks, void* workspace, cudaStream_t stream) {
  if (rows > INT32_MAX || k < 1 || k > n || chunks < 1) return cudaErrorInvalidValue;
  if (chunks == 1 && n > UINT32_MAX) return cudaErrorInvalidValue;  // it counts in 32 bits
  if (rows == 0) return cudaSuccess;                                // an empty grid is an error
  return with_format(dtype, [&](auto type) {
    using Format = typename decltype(type)::type;
    using Bits = typename Format::Bits;
    const Bits* const from = static_cast<const Bits*>(x);
    Bits* const to = static_cast<Bits*>(values);
    if (chunks > 1) return topk_by_chunks<Format>(from, rows, n, stride, k, to, indices, chunks, workspace, stream);
    return launch(cuda::topk_row_kernel<Format>, dim3(static_cast<unsigned>(rows)), cuda::kThreads, stream, from, n,
                  stride, k, to, indices);
  });
}

cudaError_t launch_topk_sort(Dtype dtype, const void* values, const int64_t* indices, int64_t rows, int64_t k,
                             void* sorted_values, int64_t* sorted_indices, cudaStream_t stream) {
  if (rows > INT32_MAX || k > kTopkSortMost) return cudaErrorInvalidValue;
  if (rows == 0 || k == 0) return cudaSuccess;
  return with_format(dtype, [&](auto type) {
    using Format = typename decltype(type)::type;
    using Bits = typename Format::Bits;
    return launch(cuda::topk_sort_kernel<Format>, dim3(static_cast<unsigned>(rows)), cuda::kThreads, stream,
                  static_cast<const Bits*>(values), indices, static_cast<int>(k), static_cast<Bits*>(sorted_values),
                  sorted_indices);
  });
}

}  // namespace tamis
