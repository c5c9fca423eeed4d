// Checks, allocates, parallelises; the arithmetic is in kernels/ann. Nothing inside parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include "common.h"
#include "dispatch.h"

namespace tamis {
namespace {

using Maybe = std::optional<Tensor>;
using Found = std::tuple<Tensor, Tensor>;

// `what` names an argument: "tamis.pq_scan: codes". A size of -1 is any.
void check(const std::string& what, const Tensor& t, ScalarType dtype, const std::vector<int64_t>& sizes) {
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
Tensor floats(const std::string& what, const Tensor& t, const std::vector<int64_t>& sizes) {
  const Tensor x = t.scalar_type() == ScalarType::Double ? torch::stable::to(t, ScalarType::Float) : t;
  check(what, x, ScalarType::Float, sizes);
  return x;
}

// The same, of any float dtype.
Tensor vectors_of(const char* what, const Tensor& t, const std::vector<int64_t>& sizes) {
  if (dtype_of(what, t) == f64) return floats(what, t, sizes);
  check(what, t, t.scalar_type(), sizes);
  return t;
}

int bits_of(const std::string& what, int64_t centroids, int64_t parts) {
  STD_TORCH_CHECK(centroids == 16 || centroids == 64, what, ": expected 16 or 64 centroids, got ", centroids);
  const int bits = centroids == 16 ? 4 : 6, of = bits == 4 ? 2 : 4;
  STD_TORCH_CHECK(parts > 0 && parts % of == 0, what, ": expected a multiple of ", of, " parts, got ", parts);
  return bits;
}

Lookup lookup_of(const std::string& what, const std::string& name, int64_t parts) {
  STD_TORCH_CHECK(name == "s8" || name == "u16", what, ": lookup: expected s8 or u16, got ", name);
  STD_TORCH_CHECK(name == "s8" || parts <= 256, what, ": lookup: expected s8 above 256 parts, got u16");
  return name == "s8" ? Lookup::s8 : Lookup::u16;
}

Codes codes_of(const std::string& what, const Tensor& codes, int bits, int64_t parts, int64_t blocks) {
  check(what, codes, ScalarType::Byte, {blocks * block_bytes(bits, parts) + kCodesSlack});
  return {data<uint8_t>(codes), bits, parts};
}

int64_t blocks_of(int64_t n, int bits) { return (n + block_vectors(bits) - 1) / block_vectors(bits); }

void check_count(const std::string& what, int64_t n) {  // candidates keep positions in 32 bits
  STD_TORCH_CHECK(n <= UINT32_MAX, what, ": expected fewer than 2^32 vectors, got ", n);
}

// Lists lie one after the other, each in blocks of its own.
void check_lists(const std::string& what, const int64_t* start, const int64_t* block, int64_t lists, int64_t vectors) {
  bool sound = start[0] == 0 && block[0] == 0;
  for (int64_t i = 0; sound && i < lists; ++i) {
    const int64_t n = start[i + 1] - start[i];
    sound = n >= 0 && block[i + 1] - block[i] == (n + vectors - 1) / vectors;
  }
  STD_TORCH_CHECK(sound, what, ": start, block: expected lists one after the other, in whole blocks");
}

std::vector<uint64_t> words_of(const std::string& what, const Maybe& allowed, int64_t n) {
  if (!allowed) return {};
  check(what + ": allowed", *allowed, ScalarType::Bool, {n});
  const bool* const of = data<bool>(*allowed);
  std::vector<uint64_t> words(n / 64 + 2);
  for (int64_t i = 0; i < n; ++i) words[i / 64] |= uint64_t(of[i]) << (i % 64);
  return words;
}

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
  over_rows(what.c_str(), queries.size(0), count * op.d, 8 * count + 64,
            [&](int64_t begin, int64_t end, void* scratch) { kernels().ann.rerank(op, begin, end, scratch); });
  return {values, indices};
}

// A thread's memory for searches, kept: a query alone allocates nothing but its result.
void* kept_scratch(int64_t bytes) {
  struct Kept {
    char* at = nullptr;
    int64_t bytes = 0;
    ~Kept() { std::free(at); }
  };
  static thread_local Kept kept;
  if (kept.bytes < bytes) {
    std::free(kept.at);
    kept.at = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    kept.bytes = kept.at ? bytes : 0;
  }
  return kept.at;
}

Found ivf_search(const Tensor& queries_, int64_t k, int64_t leaves, int64_t rerank, const Tensor& centroids,
                 double centroid_scale, const Tensor& order_bias_, const Tensor& score_bias_, const Tensor& start,
                 const Tensor& block, const Tensor& codebooks_, const Maybe& constants_, const Tensor& codes,
                 const Maybe& bytes, double byte_scale, const Maybe& half_norms_, const Maybe& exact_, const Maybe& ids,
                 const std::string& lookup, const Maybe& allowed) {
  const std::string what = "tamis.ivf_search";
  const Tensor queries = floats(what + ": queries", queries_, {-1, -1});
  const Tensor order_bias = floats(what + ": order_bias", order_bias_, {-1});
  const int64_t count = queries.size(0), d = queries.size(1), lists = order_bias.numel();
  const Tensor score_bias = floats(what + ": score_bias", score_bias_, {lists});
  const Tensor codebooks = floats(what + ": codebooks", codebooks_, {-1, -1, -1});
  STD_TORCH_CHECK(k >= 1 && leaves >= 1 && rerank >= 1 && lists >= 1 && d >= 1, what,
                  ": expected k, leaves, rerank, lists and dimensions of at least 1, got ", k, ", ", leaves, ", ",
                  rerank, ", ", lists, ", ", d);
  check(what + ": centroids", centroids, ScalarType::Byte, {(lists + 15) / 16, (d + 3) / 4, 64});
  Maybe constants, half_norms, exact;
  if (constants_) constants = floats(what + ": constants", *constants_, {-1, codebooks.size(2)});
  const int64_t parts = codebooks.size(0), extra = constants ? constants->size(0) : 0, all = parts + extra;
  const int bits = bits_of(what + ": codebooks", codebooks.size(2), all);
  STD_TORCH_CHECK(parts >= 1, what, ": codebooks: expected at least one part");
  check(what + ": codebooks", codebooks, ScalarType::Float, {parts, (d + parts - 1) / parts, -1});
  check(what + ": start", start, ScalarType::Long, {lists + 1});
  check(what + ": block", block, ScalarType::Long, {lists + 1});
  const int64_t *const starts = data<int64_t>(start), *const blocks = data<int64_t>(block), n = starts[lists];
  check_count(what + ": start", n);
  check_lists(what, starts, blocks, lists, block_vectors(bits));
  if (bytes) check(what + ": bytes", *bytes, ScalarType::Byte, {n, (d + 63) / 64 * 64});
  if (half_norms_) half_norms = floats(what + ": half_norms", *half_norms_, {n});
  if (exact_) exact = vectors_of("tamis.ivf_search: exact", *exact_, {n, d});
  if (ids) check(what + ": ids", *ids, ScalarType::Long, {n});
  const Dtype dtype = exact ? dtype_of("tamis.ivf_search: exact", *exact) : f32;
  const std::vector<uint64_t> words = words_of(what, allowed, n);
  const Ivf ivf = {n,
                   d,
                   lists,
                   data<uint8_t>(centroids),
                   float(centroid_scale),
                   data<float>(order_bias),
                   data<float>(score_bias),
                   starts,
                   blocks,
                   data<float>(codebooks),
                   constants ? data<float>(*constants) : nullptr,
                   extra,
                   codes_of(what + ": codes", codes, bits, all, blocks[lists]),
                   {bytes ? bytes->const_data_ptr() : nullptr, (d + 63) / 64 * 64},
                   float(byte_scale),
                   half_norms ? data<float>(*half_norms) : nullptr,
                   {exact ? exact->const_data_ptr() : nullptr, d},
                   dtype};
  Tensor values = torch::stable::new_empty(queries, {count, k});
  Tensor indices = torch::stable::new_empty(queries, {count, k}, ScalarType::Long);
  const Search op = {&ivf,
                     data<float>(queries),
                     k,
                     leaves < lists ? leaves : lists,
                     rerank < k   ? k
                     : rerank < n ? rerank
                     : n > k      ? n
                                  : k,
                     lookup_of(what, lookup, all),
                     words.empty() ? nullptr : words.data(),
                     mutable_data<float>(values),
                     mutable_data<int64_t>(indices)};
  const auto& search = kernels().ann.search;
  const auto kernel = search.search[bits == 6][int(op.lookup)];
  std::atomic<bool> starved{false};
  const auto run = [&](int64_t begin, int64_t end) {
    void* const scratch = kept_scratch(search.scratch_bytes(op, end - begin));
    scratch ? kernel(op, begin, end, scratch) : starved.store(true);
  };
  if (count == 1)
    run(0, 1);
  else
    torch::stable::parallel_for(0, count, 8, run);
  STD_TORCH_CHECK(!starved, what, ": out of memory");
  if (ids) {
    int64_t* const at = mutable_data<int64_t>(indices);
    const int64_t* const id = data<int64_t>(*ids);
    for (int64_t i = 0; i < count * k; ++i)
      if (at[i] >= 0) at[i] = id[at[i]];
  }
  return {values, indices};
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("_pq_pack", TORCH_BOX(&tamis::pack));
  m.impl("pq_scan", TORCH_BOX(&tamis::scan));
  m.impl("rerank", TORCH_BOX(&tamis::rerank));
  m.impl("ivf_search", TORCH_BOX(&tamis::ivf_search));
}
