// Checks, allocates, parallelises; the arithmetic is in kernels/ann. Nothing inside parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include "ann.h"

namespace tamis {
namespace {

int64_t blocks_of(int64_t n, int bits) { return (n + block_vectors(bits) - 1) / block_vectors(bits); }

// codes [n, parts] as scans read them.
Tensor pack(const Tensor& codes, int64_t bits) {
  const std::string what = "tamis._pq_pack: codes";
  check(what, codes, ScalarType::Byte, {-1, -1});
  const int64_t n = codes.size(0), parts = codes.size(1);
  bits_of(what, int64_t{1} << bits, parts);
  const int64_t blocks = blocks_of(n, bits), bytes = block_bytes(bits, parts);
  Tensor out = advise_huge_pages(torch::stable::new_empty(codes, {blocks * bytes + kCodesSlack}));
  std::memset(mutable_data<uint8_t>(out) + blocks * bytes, 0, kCodesSlack);
  const Pack op = {data<uint8_t>(codes), n, parts, int(bits), mutable_data<uint8_t>(out)};
  torch::stable::parallel_for(0, blocks, grain(bytes * 8),
                              [&](int64_t begin, int64_t end) { kernels().ann.pack(op, begin, end, nullptr); });
  return out;
}

Found scan(const Tensor& lut_, const Tensor& codes, int64_t n, int64_t k, const std::string& lookup,
           const Maybe& allowed) {
  const std::string what = "tamis.pq_scan";
  const Tensor lut = floats(what + ": lut", lut_, {-1, -1, -1});
  const int64_t queries = lut.size(0), parts = lut.size(1);
  const int bits = bits_of(what + ": lut", lut.size(2), parts);
  check_count(what + ": n", n);
  STD_TORCH_CHECK(k >= 1, what, ": k: expected at least 1, got ", k);
  const std::vector<uint64_t> words = words_of(what, allowed, n);
  Tensor values = torch::stable::new_empty(lut, {queries, k});
  Tensor indices = torch::stable::new_empty(lut, {queries, k}, ScalarType::Long);
  const Scan op = {data<float>(lut),
                   codes_of(what + ": codes", codes, bits, parts, blocks_of(n, bits)),
                   n,
                   lookup_of(what, lookup, parts),
                   words.empty() ? nullptr : words.data(),
                   k,
                   mutable_data<float>(values),
                   mutable_data<int64_t>(indices)};
  const auto kernel = kernels().ann.scan[bits == 6][int(op.lookup)];
  // A task takes whole groups of queries that share what they read.
  over_rows(what.c_str(), (queries + 3) / 4, n * parts, kernels().ann.scan_scratch_bytes(op),
            [&](int64_t begin, int64_t end, void* scratch) {
              kernel(op, 4 * begin, end * 4 < queries ? end * 4 : queries, scratch);
            });
  return {values, indices};
}

Found rerank(const Tensor& queries_, const Tensor& candidates, const Tensor& vectors_, int64_t k,
             const std::string& metric) {
  const std::string what = "tamis.rerank";
  const Tensor queries = floats(what + ": queries", queries_, {-1, -1});
  check(what + ": candidates", candidates, ScalarType::Long, {queries.size(0), -1});
  const Tensor vectors = vectors_of("tamis.rerank: vectors", vectors_, {-1, queries.size(1)});
  const Dtype dtype = dtype_of("tamis.rerank: vectors", vectors);
  STD_TORCH_CHECK(metric == "ip" || metric == "l2", what, ": metric: expected ip or l2, got ", metric);
  STD_TORCH_CHECK(k >= 1, what, ": k: expected at least 1, got ", k);
  const int64_t count = candidates.size(1), *const of = data<int64_t>(candidates);
  check_count(what + ": candidates", count);
  for (int64_t i = 0; i < candidates.numel(); ++i)
    STD_TORCH_CHECK(of[i] < vectors.size(0), what, ": candidates: expected rows of vectors, got ", of[i], " of ",
                    vectors.size(0));
  Tensor values = torch::stable::new_empty(queries, {queries.size(0), k});
  Tensor indices = torch::stable::new_empty(candidates, {queries.size(0), k});
  const Rerank op = {data<float>(queries),
                     of,
                     count,
                     queries.size(1),
                     k,
                     {vectors.const_data_ptr(), vectors.size(1)},
                     dtype,
                     metric == "l2",
                     mutable_data<float>(values),
                     mutable_data<int64_t>(indices)};
  over_rows(what.c_str(), queries.size(0), count * op.d, 16 * count + 64,
            [&](int64_t begin, int64_t end, void* scratch) { kernels().ann.rerank(op, begin, end, scratch); });
  return {values, indices};
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("_pq_pack", TORCH_BOX(&tamis::pack));
  m.impl("pq_scan", TORCH_BOX(&tamis::scan));
  m.impl("rerank", TORCH_BOX(&tamis::rerank));
}
