// Checks, allocates, parallelises; the arithmetic is in kernels/ann. Nothing inside parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include "ann.h"

namespace tamis {
namespace {

void check_rows(const char* what, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, what, ": expected [n, d], got rank ", t.dim());
}

Tensor as_real(const char* what, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cpu(), what, ": expected a CPU tensor");
  dtype_of(what, t);
  return torch::stable::contiguous(t.scalar_type() == real_type(x) ? t : torch::stable::to(t, real_type(x)));
}

// What a kernel reads instead of `given`.
struct Made : Scratch {
  template <class Given>
  Made(const char* what, const Tables<Given>& tables, const Given& given) : Scratch(tables.bytes(given)) {
    STD_TORCH_CHECK(data(), what, ": out of memory");
    tables.make(given, data());
  }
};

std::tuple<Tensor, Tensor> kmeans_assign(const Tensor& x_, const Tensor& centroids, const std::string& metric) {
  const char* const what = "tamis.kmeans_assign";
  const Tensor x = logits("tamis.kmeans_assign: x", x_);
  check_rows("tamis.kmeans_assign: x", x);
  const Tensor c = as_real("tamis.kmeans_assign: centroids", centroids, x);
  const int64_t n = x.size(0), d = x.size(1);
  STD_TORCH_CHECK(c.dim() == 2 && c.size(0) > 0 && c.size(1) == d, what,
                  ": centroids: expected [centroids, d], at least one of x's ", d, " dimensions");
  STD_TORCH_CHECK(metric == "l2" || metric == "ip", what, ": metric: expected l2 or ip, got ", metric);
  Tensor indices = torch::stable::new_empty(x, {n}, ScalarType::Long);
  Tensor distances = torch::stable::new_empty(x, {n}, real_type(x));
  const auto& k = kernels().ann_build;
  const int wide = x.scalar_type() == ScalarType::Double;
  const Centroids given = {c.const_data_ptr(), d, c.size(0), metric == "ip"};
  const Made tables(what, k.assign_tables[wide], given);
  const Assign op = {*walk(x), given, tables.data(), static_cast<int64_t*>(indices.mutable_data_ptr()),
                     distances.mutable_data_ptr()};
  const auto kernel = k.assign[dtype_of(what, x)];
  over_rows(what, n, d, k.assign_scratch_bytes[wide](given),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
  return {indices, distances};
}

Tensor pq_encode(const Tensor& x_, const Tensor& codebooks, const std::optional<Tensor>& directions_, double eta,
                 int64_t rounds) {
  const char* const what = "tamis.pq_encode";
  const Tensor x = logits("tamis.pq_encode: x", x_);
  check_rows("tamis.pq_encode: x", x);
  const Tensor books = as_real("tamis.pq_encode: codebooks", codebooks, x);
  const int64_t n = x.size(0), d = x.size(1);
  STD_TORCH_CHECK(books.dim() == 3, what, ": codebooks: expected [parts, centroids, width], got rank ", books.dim());
  const int64_t parts = books.size(0), centroids = books.size(1);
  STD_TORCH_CHECK(parts >= 1 && parts <= d && books.size(2) == (d + parts - 1) / parts, what,
                  ": codebooks: expected [parts, centroids, ceil(d / parts)] for x's ", d, " dimensions, got ", parts,
                  " parts of width ", books.size(2));
  STD_TORCH_CHECK(centroids >= 2 && centroids <= 256, what, ": codebooks: expected 2 to 256 centroids, got ",
                  centroids);
  STD_TORCH_CHECK(eta >= 1 && eta < INFINITY, what, ": eta: expected 1 or more, got ", eta);
  STD_TORCH_CHECK(rounds >= 0, what, ": rounds: expected 0 or more, got ", rounds);
  PqEncode op = {};
  Tensor directions;
  if (directions_) {
    directions = logits("tamis.pq_encode: directions", *directions_);
    STD_TORCH_CHECK(shape(directions) == shape(x) && directions.scalar_type() == x.scalar_type(), what,
                    ": directions: expected x's shape and dtype");
    op.directions = *walk(directions);
  }
  Tensor codes = torch::stable::new_empty(x, {n, parts}, ScalarType::Byte);
  const auto& k = kernels().ann_build;
  const int wide = x.scalar_type() == ScalarType::Double;
  op.x = *walk(x);
  op.codebooks = {books.const_data_ptr(), d, parts, centroids};
  const Made tables(what, k.encode_tables[wide], op.codebooks);
  op.tables = tables.data();
  op.eta = eta;
  op.rounds = rounds;
  op.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const auto kernel = k.encode[dtype_of(what, x)];
  over_rows(what, n, d, k.encode_scratch_bytes[wide](op.codebooks),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
  return codes;
}

Tensor rank_of(const Tensor& queries_, const Tensor& targets, const Tensor& vectors_, const Maybe& weights,
               const std::string& metric, const std::string& ties) {
  const std::string what = "tamis.rank_of";
  const Tensor queries = floats(what + ": queries", queries_, {-1, -1});
  check(what + ": targets", targets, ScalarType::Long, {queries.size(0), -1});
  const Tensor vectors = vectors_of((what + ": vectors").c_str(), vectors_, {-1, queries.size(1)});
  STD_TORCH_CHECK(metric == "ip" || metric == "l2", what, ": metric: expected ip or l2, got ", metric);
  STD_TORCH_CHECK(ties == "first" || ties == "last", what, ": ties: expected first or last, got ", ties);
  const int64_t n = vectors.size(0), *const of = data<int64_t>(targets);
  for (int64_t i = 0; i < targets.numel(); ++i)
    STD_TORCH_CHECK(of[i] < n, what, ": targets: expected rows of vectors, got ", of[i], " of ", n);
  constexpr int64_t kMost = INT32_MAX;  // counts are of 32 bits
  int64_t total = n;
  std::vector<int32_t> counts;
  if (weights) {
    check(what + ": weights", *weights, ScalarType::Long, {n});
    const int64_t* const weight = data<int64_t>(*weights);
    total = 0;
    for (int64_t i = 0; i < n && total <= kMost; ++i) {
      STD_TORCH_CHECK(weight[i] >= 0 && weight[i] <= kMost, what, ": weights: expected 0 to 2^31 - 1, got ", weight[i]);
      counts.push_back(int32_t(weight[i])), total += weight[i];
    }
  }
  STD_TORCH_CHECK(total <= kMost, what, ": expected fewer than 2^31 vectors in all");
  Tensor ranks = torch::stable::new_empty(targets, {queries.size(0), targets.size(1)});
  const Rank op = {data<float>(queries),
                   of,
                   targets.size(1),
                   queries.size(1),
                   n,
                   total,
                   vectors.const_data_ptr(),
                   weights ? counts.data() : nullptr,
                   metric == "l2",
                   ties == "last",
                   mutable_data<int64_t>(ranks)};
  const auto& k = kernels().ann_build;
  const auto kernel = k.rank[dtype_of("tamis.rank_of: vectors", vectors)];
  constexpr int64_t kTogether = 32;  // queries that share a panel
  const int64_t count = queries.size(0);
  over_rows(what.c_str(), (count + kTogether - 1) / kTogether, n * op.d, k.rank_scratch_bytes(op),
            [&](int64_t begin, int64_t end, void* scratch) {
              kernel(op, kTogether * begin, end * kTogether < count ? end * kTogether : count, scratch);
            });
  return ranks;
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("kmeans_assign", TORCH_BOX(&tamis::kmeans_assign));
  m.impl("pq_encode", TORCH_BOX(&tamis::pq_encode));
  m.impl("rank_of", TORCH_BOX(&tamis::rank_of));
}
