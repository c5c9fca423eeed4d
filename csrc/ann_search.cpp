// An index's search: checks its tensors, allocates, parallelises; the arithmetic is in kernels/ann.
#include <torch/csrc/stable/library.h>
#include "ann.h"
#include "ann_open.h"

namespace tamis {
namespace {

// Lists lie one after the other, each in blocks of its own.
void check_lists(const std::string& what, const int64_t* start, const int64_t* block, int64_t lists, int64_t vectors) {
  bool sound = start[0] == 0 && block[0] == 0;
  for (int64_t i = 0; sound && i < lists; ++i) {
    const int64_t n = start[i + 1] - start[i];
    sound = n >= 0 && block[i + 1] - block[i] == (n + vectors - 1) / vectors;
  }
  STD_TORCH_CHECK(sound, what, ": start, block: expected lists one after the other, in whole blocks");
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

struct Buffers {
  const Tensor& centroids;
  double centroid_scale;
  Tensor order_bias, score_bias;
  const Tensor &start, &block;
  Tensor codebooks;
  Maybe constants;
  const Tensor& codes;
  const Maybe& bytes;
  double byte_scale;
  Maybe half_norms, exact;
  const Maybe& ids;
  Maybe center;

  // Checked against each other and d; floats that were doubles are replaced.
  Ivf of(const std::string& what, int64_t d) {
    order_bias = floats(what + ": order_bias", order_bias, {-1});
    const int64_t lists = order_bias.numel();
    score_bias = floats(what + ": score_bias", score_bias, {lists});
    codebooks = floats(what + ": codebooks", codebooks, {-1, -1, -1});
    STD_TORCH_CHECK(lists >= 1 && d >= 1, what, ": expected lists and dimensions of at least 1, got ", lists, ", ", d);
    check(what + ": centroids", centroids, ScalarType::Byte, {(lists + 15) / 16, (d + 3) / 4, 64});
    if (constants) constants = floats(what + ": constants", *constants, {-1, codebooks.size(2)});
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
    if (half_norms) half_norms = floats(what + ": half_norms", *half_norms, {n});
    if (exact) exact = vectors_of((what + ": exact").c_str(), *exact, {n, d});
    if (ids) check(what + ": ids", *ids, ScalarType::Long, {n});
    if (center) center = floats(what + ": center", *center, {d});
    return {n,
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
            exact ? dtype_of("tamis.ivf_search: exact", *exact) : f32,
            center ? data<float>(*center) : nullptr};
  }
};

Search search_of(const Ivf& ivf, const Asked& asked, bool normalize) {
  const int64_t n = ivf.n, k = asked.k, rerank = asked.rerank;
  const int64_t most = n > k ? n : k, wanted = rerank < k ? k : rerank < most ? rerank : most;
  const int64_t leaves = asked.leaves < ivf.leaves ? asked.leaves : ivf.leaves;
  return {&ivf, asked.queries, normalize, k, leaves, wanted, asked.lookup, nullptr, asked.values, asked.ids};
}

// Whether there was memory. `ids`: of positions, or null.
bool run(const Search& op, int64_t count, const int64_t* ids) {
  const auto kernel = kernels().ann.search.search[op.index->codes.bits == 6][int(op.lookup)];
  std::atomic<bool> starved{false};
  const auto some = [&](int64_t begin, int64_t end) {
    void* const scratch = kept_scratch(kernels().ann.search.scratch_bytes(op, end - begin));
    scratch ? kernel(op, begin, end, scratch) : starved.store(true);
  };
  if (count == 1)
    some(0, 1);
  else
    torch::stable::parallel_for(0, count, 8, some);
  if (starved) return false;
  for (int64_t i = 0; ids && i < count * op.k; ++i)
    if (op.positions[i] >= 0) op.positions[i] = ids[op.positions[i]];
  return true;
}

Found ivf_search(const Tensor& queries_, int64_t k, int64_t leaves, int64_t rerank, const Tensor& centroids,
                 double centroid_scale, const Tensor& order_bias, const Tensor& score_bias, const Tensor& start,
                 const Tensor& block, const Tensor& codebooks, const Maybe& constants, const Tensor& codes,
                 const Maybe& bytes, double byte_scale, const Maybe& half_norms, const Maybe& exact, const Maybe& ids,
                 const Maybe& center, const std::string& lookup, const Maybe& allowed, bool normalize) {
  const std::string what = "tamis.ivf_search";
  const Tensor queries = floats(what + ": queries", queries_, {-1, -1});
  STD_TORCH_CHECK(k >= 1 && leaves >= 1 && rerank >= 1, what, ": expected k, leaves and rerank of at least 1, got ", k,
                  ", ", leaves, ", ", rerank);
  Buffers buffers = {centroids, centroid_scale, order_bias, score_bias, start, block, codebooks, constants,
                     codes,     bytes,          byte_scale, half_norms, exact, ids,   center};
  const Ivf ivf = buffers.of(what, queries.size(1));
  const std::vector<uint64_t> words = words_of(what, allowed, ivf.n);
  const int64_t count = queries.size(0);
  Tensor values = torch::stable::new_empty(queries, {count, k});
  Tensor indices = torch::stable::new_empty(queries, {count, k}, ScalarType::Long);
  Search op = search_of(ivf,
                        {data<float>(queries), count, k, leaves, rerank, lookup_of(what, lookup, ivf.codes.parts),
                         mutable_data<float>(values), mutable_data<int64_t>(indices)},
                        normalize);
  if (allowed) op.allowed = words.data();
  STD_TORCH_CHECK(run(op, count, ids ? data<int64_t>(*ids) : nullptr), what, ": out of memory");
  return {values, indices};
}

bool search_open(const OpenIndex& index, const Asked& asked) {
  return run(search_of(index.ivf, asked, index.normalize), asked.count, index.ids);
}

// The bytes of an OpenIndex; the caller keeps its buffers, which must be of the dtypes that kernels read.
Tensor open(int64_t d, const Tensor& centroids, double centroid_scale, const Tensor& order_bias,
            const Tensor& score_bias, const Tensor& start, const Tensor& block, const Tensor& codebooks,
            const Maybe& constants, const Tensor& codes, const Maybe& bytes, double byte_scale, const Maybe& half_norms,
            const Maybe& exact, const Maybe& ids, const Maybe& center, bool normalize) {
  const std::string what = "tamis._ivf_open";
  for (const Tensor* t : {&order_bias, &score_bias, &codebooks})
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, what, ": expected float32 buffers");
  for (const Maybe* t : {&constants, &half_norms, &exact, &center})
    STD_TORCH_CHECK(!*t || (*t)->scalar_type() != ScalarType::Double, what, ": expected no float64 buffers");
  Buffers buffers = {centroids, centroid_scale, order_bias, score_bias, start, block, codebooks, constants,
                     codes,     bytes,          byte_scale, half_norms, exact, ids,   center};
  const OpenIndex opened = {search_open, buffers.of(what, d), ids ? data<int64_t>(*ids) : nullptr, normalize};
  Tensor held = torch::stable::new_empty(start, {int64_t(sizeof opened)}, ScalarType::Byte);
  std::memcpy(mutable_data<uint8_t>(held), &opened, sizeof opened);
  return held;
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("ivf_search", TORCH_BOX(&tamis::ivf_search));
  m.impl("_ivf_open", TORCH_BOX(&tamis::open));
}
