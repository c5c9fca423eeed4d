// Drives the kernels that search an index, of one instruction set, without torch: under sanitizers (`make sanitize`),
// or another CPU's emulator. Every buffer is as long as its numbers and no longer, and two threads share the queries.
// All numbers are whole, or so many halves, so that what is found, in which order, is known from plain loops.
#include "search.h"

namespace {

void check_pack(Random& random, int64_t n, int64_t parts, int bits) {
  Rows codes(n * parts);
  for (uint8_t& code : codes) code = uint8_t(random() % (1 << bits));
  const Rows out = pack(codes, n, parts, bits);
  for (int64_t v = 0; v < padded(n, block_vectors(bits)); ++v)
    for (int64_t p = 0; p < parts; ++p) {
      const uint8_t* const block = out.data() + v / block_vectors(bits) * block_bytes(bits, parts);
      const int64_t i = v % block_vectors(bits);
      const uint8_t* const four = block + p / 4 * 192 + i;
      int got = bits == 4 ? block[p * 16 + i % 16] >> (i / 16 * 4) & 15 : four[p % 4 * 64] & 63;
      if (bits == 6 && p % 4 == 3) got = four[0] >> 6 | four[64] >> 6 << 2 | four[128] >> 6 << 4;
      const int want = v < n ? codes[v * parts + p] : 0;
      expect(got == want, "pack", f32, f32, n, got, want);
    }
}

void check_scan(Random& random, int64_t id, int64_t n, int64_t parts, int bits, Lookup lookup, int64_t queries,
                int64_t k, int one_in) {
  const int64_t centroids = int64_t(1) << bits;
  const int of = once_in(random, 3) ? 2 : int(centroids);  // few codes: many scores are equal
  Rows codes(n * parts);
  for (uint8_t& code : codes) code = uint8_t(random() % of);
  Array<float> lut(queries * parts * centroids);
  const int same = any(random, {0, 0, 0, 0, 1, 2});  // of each part all entries, or of all parts but the last
  const float unit = any(random, {1.f, 1.f, 0x1p-90f, 0x1p90f});
  for (int64_t i = 0; i < queries * parts; ++i) {
    const bool flat = same == 1 || (same == 2 && (i + 1) % parts);
    draw_centroids(random, lut.data() + i * centroids, centroids, flat ? 0 : 2, flat ? 0 : 3);
  }
  for (float& x : lut) x *= unit;
  const Rows blocks = pack(codes, n, parts, bits);
  const Array<uint64_t> allowed = one_in ? drawn_bits(random, n, one_in) : Array<uint64_t>();
  Array<float> values(queries * k);
  Array<int64_t> indices(queries * k);
  const Scan op = {lut.data(),
                   {blocks.data(), bits, parts},
                   n,
                   lookup,
                   allowed.empty() ? nullptr : allowed.data(),
                   k,
                   values.data(),
                   indices.data()};
  in_two_threads(queries, kernels.scan_scratch_bytes(op), [&](int64_t begin, int64_t end, void* scratch) {
    kernels.scan[bits == 6][int(lookup)](op, begin, end, scratch);
  });
  for (int64_t q = 0; q < queries; ++q) {
    const Entries entries = entries_of(lut.data() + q * parts * centroids, parts, centroids, lookup);
    if (lookup == Lookup::s8 && entries.most > 104) continue;  // sums may saturate
    Found want;
    for (int64_t v = 0; v < n; ++v)
      if (is_set(allowed, v)) want.push_back({double(sum_of(entries, &codes[v * parts], parts, bits)), v});
    keep_best(want, k);
    for (Scored& one : want) one.score = float(one.score) / entries.scale + entries.offset;
    expect_found("scan", id, want, k, values.data() + q * k, indices.data() + q * k, -INFINITY);
  }
}

void check_rerank(Random& random, int64_t id, Dtype dtype, int64_t d, int64_t count, int64_t k, bool l2) {
  const int64_t n = 40, queries = 1 + id % 5;
  Logits x(dtype, n, d, id % 3);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t i = 0; i < d; ++i) put_whole(x, r, i, whole(random, -3, 3));
  Array<float> of(queries * d), values(queries * k);
  Array<int64_t> candidates(queries * count), indices(queries * k);
  for (float& v : of) v = float(whole(random, -3, 3));
  for (int64_t& c : candidates) c = once_in(random, 9) ? -1 : whole(random, 0, n - 1);
  const Rerank op = {of.data(), candidates.data(), count,         d, k, {x.memory.data(), x.stride}, dtype,
                     l2,        values.data(),     indices.data()};
  in_two_threads(queries, count * 16,
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.rerank(op, begin, end, scratch); });
  for (int64_t q = 0; q < queries; ++q) {
    Found want;
    for (int64_t i = 0; i < count; ++i)
      if (const int64_t r = candidates[q * count + i]; r >= 0) want.push_back({exact_score(&of[q * d], x, r, l2), i});
    keep_best(want, k);
    for (Scored& one : want) one.score *= l2 ? -1 : 1, one.position = candidates[q * count + one.position];
    expect_found("rerank", id, want, k, values.data() + q * k, indices.data() + q * k, l2 ? INFINITY : -INFINITY);
  }
}

struct Shape {
  int64_t d, leaves, parts, extra;
  int bits;
  bool l2, bytes, exact;
  Dtype dtype;
};

// An index of drawn lists; nothing in it was trained, nor has one part to fit another. What lies behind a row's end, in
// place of lists that there are not, and in slots that hold no vector: anything.
struct Index {
  Shape shape;
  int64_t n = 0, width;
  Array<uint8_t> centroids, slots, codes, bytes;
  Array<float> order_bias, score_bias, codebooks, constants, half_norms;
  Array<int64_t> start, block;
  Logits exact;
  Ivf ivf;

  Index(Random& random, const Shape& s) : shape(s), exact(s.dtype, 1, 1, 0) {
    const int64_t each = block_vectors(s.bits), books = s.parts - s.extra, size = int64_t(1) << s.bits;
    start.assign(s.leaves + 1, 0), block.assign(s.leaves + 1, 0);
    for (int64_t l = 0; l < s.leaves; ++l) {
      constexpr int kSizes[] = {0, 1, 31, 32, 33, 63, 64, 65};
      start[l + 1] = start[l] + (once_in(random, 60) ? any(random, {1023, 1024, 1025, 1100}) : kSizes[random() % 8]);
      block[l + 1] = block[l] + (start[l + 1] - start[l] + each - 1) / each;
    }
    n = start[s.leaves], width = (s.d + books - 1) / books;
    centroids = drawn(random, padded(s.leaves, 16) * padded(s.d, 4));
    const int same = any(random, {1, 4, 4, 4});
    order_bias = Array<float>(s.leaves), score_bias = Array<float>(s.leaves);
    for (int64_t l = 0; l < s.leaves; ++l) {
      const bool twice = l > 0 && once_in(random, same);  // the same list again
      for (int64_t i = 0; i < s.d; ++i)
        centroid(l, i) = twice ? centroid(l - 1, i) : uint8_t(128 + whole(random, -9, 9));
      order_bias[l] = twice ? order_bias[l - 1] : float(whole(random, -20, 20));
      score_bias[l] = float(whole(random, -20, 20));
    }
    const int of = any(random, {1, 2, int(size), int(size), int(size)});
    slots = drawn(random, block[s.leaves] * each * s.parts);
    for (uint8_t& code : slots) code = uint8_t(code % of);
    codes = pack(slots, block[s.leaves] * each, s.parts, s.bits);
    codebooks = Array<float>(books * width * size);
    const bool flat = once_in(random, 8);  // as of vectors that are their lists' centroids
    for (int64_t p = 0; p < books; ++p)
      for (int64_t i = 0; i < width; ++i) {
        float* const at = codebooks.data() + (p * width + i) * size;
        i < cut(s.d, books, p + 1) - cut(s.d, books, p) ? draw_centroids(random, at, size, !flat, flat ? 0 : 3)
                                                        : std::fill(at, at + size, 1e30f);
      }
    constants = Array<float>(s.extra * size);
    for (int64_t p = 0; p < s.extra; ++p) draw_centroids(random, constants.data() + p * size, size, 0, flat ? 0 : 20);
    if (s.bytes) bytes = drawn(random, n * padded(s.d, 64));
    exact = Logits(s.dtype, std::max<int64_t>(n, 1), s.d, once_in(random, 2));
    half_norms = Array<float>(n);
    const int wild = any(random, {1, 4, 9});  // how often a vector's bytes are not of it
    for (int64_t v = 0; v < n; ++v) {
      half_norms[v] = float(whole(random, 0, 40)) / 2;
      for (int64_t i = 0; i < s.d; ++i) {
        const int x = whole(random, -4, 4), near = once_in(random, wild) ? whole(random, -4, 4) : x;
        if (s.bytes) bytes[v * padded(s.d, 64) + i] = uint8_t(128 + 2 * x);
        put_whole(exact, v, i, near);
      }
    }
    ivf = {n,
           s.d,
           s.leaves,
           centroids.data(),
           0.5,
           order_bias.data(),
           score_bias.data(),
           start.data(),
           block.data(),
           codebooks.data(),
           constants.data(),
           s.extra,
           {codes.data(), s.bits, s.parts},
           {s.bytes ? bytes.data() : nullptr, padded(s.d, 64)},
           0.5,
           s.l2 ? half_norms.data() : nullptr,
           {s.exact ? exact.memory.data() : nullptr, exact.stride},
           s.dtype};
    if (n == 0 && s.bytes) ivf.bytes.data = centroids.data();  // not null, and never read
  }
  static Rows drawn(Random& random, int64_t count) {
    Rows x(count);
    for (uint8_t& v : x) v = uint8_t(random());
    return x;
  }
  uint8_t& centroid(int64_t list, int64_t i) {
    return centroids[((list / 16 * (padded(shape.d, 4) / 4) + i / 4) * 16 + list % 16) * 4 + i % 4];
  }
  const uint8_t* code(int64_t list, int64_t position) const {
    return slots.data() + (block[list] * block_vectors(shape.bits) + position - start[list]) * shape.parts;
  }
};

struct Asked {  // a query, as search takes it
  std::vector<float> x;
  std::vector<int> bytes;
  float scale;

  Asked(const float* query, int64_t d, bool normalize) : x(query, query + d) {
    double squares = 0;
    for (float v : x) squares += double(v) * v;
    for (float& v : x) v = !normalize ? v : squares > 0 ? float(v / std::sqrt(squares)) : 0;
    float most = 1e-30f;
    for (float v : x) most = std::max(most, std::fabs(v));
    scale = most / 127;
    for (float v : x) bytes.push_back(int(std::nearbyint(v * (1 / scale))));
  }
  float dot(const std::vector<int>& with, float with_scale) const {
    int sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += bytes[i] * with[i];
    return float(sum) * (with_scale * scale);
  }
};

struct Candidates {
  std::vector<int64_t> lists;  // the best first
  Found scores;                // of who is allowed there
  std::vector<int> of_best;    // sums of the best list's first vectors
  int64_t there = 0;           // allowed or not
  int64_t best_add = 0, least_add = INT64_MAX;
  Entries entries;
};

Candidates candidates_of(const Index& index, const Search& op, const Array<uint64_t>& allowed, const Asked& q) {
  Candidates made;
  const Shape& s = index.shape;
  const int64_t books = s.parts - s.extra, size = int64_t(1) << s.bits;
  std::vector<float> near(s.leaves), keys(s.leaves), lut(s.parts * size);
  for (int64_t l = 0; l < s.leaves; ++l) {
    std::vector<int> centroid(s.d);
    for (int64_t i = 0; i < s.d; ++i) centroid[i] = const_cast<Index&>(index).centroid(l, i) - 128;
    near[l] = q.dot(centroid, index.ivf.centroid_scale), keys[l] = near[l] - index.order_bias[l];
  }
  Found order;
  for (int64_t l = 0; l < s.leaves; ++l) order.push_back({keys[l], l});
  keep_best(order, op.leaves);
  for (const Scored& one : order) made.lists.push_back(one.position);
  std::sort(made.lists.begin() + 1, made.lists.end());
  for (int64_t p = 0; p < books; ++p)
    for (int64_t c = 0; c < size; ++c) {
      double sum = 0;
      for (int64_t i = cut(s.d, books, p); i < cut(s.d, books, p + 1); ++i)
        sum += q.x[i] * index.codebooks[(p * index.width + i - cut(s.d, books, p)) * size + c];
      lut[p * size + c] = float(sum);
    }
  std::copy(index.constants.begin(), index.constants.end(), lut.begin() + books * size);
  const float base = near[made.lists[0]] + index.score_bias[made.lists[0]];
  float most = 0;
  for (int64_t l : made.lists) most = std::max(most, std::fabs(near[l] + index.score_bias[l] - base));
  made.entries = entries_of(lut.data(), s.parts, size, op.lookup, most > 0 ? 0x1p28f / most : INFINITY);
  made.entries.offset += base;
  for (int64_t l : made.lists) {
    const float apart = near[l] + index.score_bias[l] - base;
    const int64_t add = int64_t(std::nearbyint(apart * made.entries.scale));
    if (l == made.lists[0]) made.best_add = add;
    made.least_add = std::min(made.least_add, add), made.there += index.start[l + 1] - index.start[l];
    for (int64_t v = index.start[l]; v < index.start[l + 1]; ++v) {
      if (!is_set(allowed, v)) continue;
      const int sum = sum_of(made.entries, index.code(l, v), s.parts, s.bits);
      if (l == made.lists[0] && v - index.start[l] < 1024) made.of_best.push_back(sum);
      made.scores.push_back({double(sum + add), v});
    }
  }
  return made;
}

// Who is compared again; `sure`: as far as that does not depend on the order in which sums saturated.
Found passing(const Candidates& all, const Search& op, bool& sure) {
  const bool is_signed = op.lookup == Lookup::s8;
  const int64_t lowest = is_signed ? -128 : 0, wide = is_signed ? 1 : 256;
  const auto from = [&](double threshold) {
    Found left;
    for (const Scored& one : all.scores)
      if (one.score >= threshold) left.push_back(one);
    return left;
  };
  Found found = from(double(all.least_add + lowest));
  for (const float share : {all.lists.size() > 1 ? 0.6f : 1.f, 1.f}) {
    if (all.there <= op.rerank) break;
    int64_t bin = 255;
    const auto reach = [&] {
      return std::count_if(all.of_best.begin(), all.of_best.end(), [&](int v) { return v >= lowest + bin * wide; });
    };
    while (bin > 0 && reach() < int64_t(share * op.rerank) + 1) --bin;
    const Found some = from(double(all.best_add + lowest + bin * wide));
    if (int64_t(some.size()) < std::max(op.k, op.rerank / 2)) continue;
    found = some;
    break;
  }
  sure = !is_signed || all.entries.most <= 104;
  keep_best(found, op.rerank);
  return found;
}

void check_query(const Index& index, const Search& op, const Array<uint64_t>& allowed, int64_t id, int64_t query) {
  const Shape& s = index.shape;
  std::vector<float> x(op.queries + query * s.d, op.queries + (query + 1) * s.d);
  for (int64_t i = 0; index.ivf.center && i < s.d; ++i) x[i] -= index.ivf.center[i];
  const Asked q(x.data(), s.d, op.normalize);
  const Candidates all = candidates_of(index, op, allowed, q);
  const float* const values = op.values + query * op.k;
  const int64_t* const positions = op.positions + query * op.k;
  static int64_t tried = 0, unsure = 0;
  bool sure;
  Found found = passing(all, op, sure);
  ++tried, unsure += !sure;
  const int64_t some = std::count_if(positions, positions + op.k, [](int64_t p) { return p >= 0; });
  const int64_t many = std::min<int64_t>(op.k, int64_t(all.scores.size()));
  expect(some == many, "search: as many as there are", f32, f32, id, double(some), double(many));
  if (!sure) {
    for (int64_t j = 0; j < op.k; ++j) {
      const auto is = [&](const Scored& one) { return one.position == positions[j]; };
      const bool known = std::any_of(all.scores.begin(), all.scores.end(), is);
      expect(known || positions[j] == -1, "search: somebody", f32, f32, id, double(positions[j]), 0);
    }
    expect(unsure * 3 < tried + 100, "search: unsure", f32, f32, id, double(unsure), double(tried));
    return;
  }
  double square = 0;
  for (float v : q.x) square += v * v;
  if (s.bytes) {
    for (Scored& one : found) {
      std::vector<int> row(s.d);
      for (int64_t i = 0; i < s.d; ++i) row[i] = index.bytes[one.position * padded(s.d, 64) + i] - 128;
      one.score = q.dot(row, 0.5) - (s.l2 ? index.half_norms[one.position] : 0);
    }
    keep_best(found, s.exact ? op.k + op.k / 2 + 1 : op.k);
  }
  if (s.exact)
    for (Scored& one : found) one.score = exact_score(q.x.data(), index.exact, one.position, s.l2);
  keep_best(found, op.k);
  for (Scored& one : found) {
    if (!s.exact && !s.bytes) one.score = float(one.score) / all.entries.scale + all.entries.offset;
    if (s.l2) one.score = s.exact ? -one.score : std::max(square - 2 * one.score, 0.0);
  }
  expect_found("search", id, found, op.k, values, positions, s.l2 ? INFINITY : -INFINITY);
}

// Its largest number is 127 times a power of two, so that its bytes are its numbers; or its length is one.
void draw_query(Random& random, float* x, int64_t d, bool normalize, float small) {
  const float unit = normalize ? any(random, {1.f, small, 0x1p-100f, 0x1p60f}) : once_in(random, 2) ? 1 : small;
  for (int64_t i = 0; i < d; ++i) x[i] = unit * float(normalize ? 0 : whole(random, -7, 7));
  if (once_in(random, 20)) std::fill(x, x + d, 0);
  if (once_in(random, 20)) return;
  x[once_in(random, 2) ? d - 1 : int64_t(random() % d)] =
      unit * (normalize ? 64 : 127) * float(whole(random, 0, 1) * 2 - 1);
  for (int left = normalize ? d >= 16 ? 15 : d >= 4 ? 3 : 0 : 0; left;)
    if (float& v = x[random() % d]; v == 0) v = unit * 64, --left;
}

void check_search(Random& random, int64_t id, const Shape& shape, Lookup lookup, int64_t queries, int64_t leaves,
                  int64_t k, int64_t rerank, bool normalize, int one_in) {
  Index index(random, shape);
  Array<float> center(shape.d);
  for (float& v : center) v = float(whole(random, -3, 3));
  if (once_in(random, 3)) index.ivf.center = center.data();
  const Array<uint64_t> allowed = one_in ? drawn_bits(random, index.n, one_in) : Array<uint64_t>();
  Array<float> of(queries * shape.d), values(queries * k);
  Array<int64_t> positions(queries * k);
  for (int64_t q = 0; q < queries; ++q)
    draw_query(random, of.data() + q * shape.d, shape.d, normalize, shape.l2 ? 1 / 16.f : 1 / 1024.f);
  for (int64_t i = 0; index.ivf.center && i < queries * shape.d; ++i) of[i] += center[i % shape.d];
  if (rerank <= 0) rerank += index.n + 1;
  const Search op = {&index.ivf,
                     of.data(),
                     normalize,
                     k,
                     std::min(leaves, shape.leaves),
                     std::max(k, rerank),
                     lookup,
                     one_in ? allowed.data() : nullptr,
                     values.data(),
                     positions.data()};
  const int64_t split = queries > 100 ? 1 : 2;  // more than a tile at once
  const auto kernel = kernels.search.search[shape.bits == 6][int(lookup)];
  const int64_t bytes = kernels.search.scratch_bytes(op, queries - (split == 2 ? queries / 2 : 0));
  if (split == 2)
    in_two_threads(queries, bytes, [&](int64_t b, int64_t e, void* scratch) { kernel(op, b, e, scratch); });
  if (split == 1) {
    Array<char> scratch(bytes);
    kernel(op, 0, queries, scratch.data());
  }
  for (int64_t q = 0; q < queries; ++q) check_query(index, op, allowed, id, q);
}

// Whatever it asks for, memory is its own and positions are of the index.
void check_strange(Random& random, int64_t id, double strange) {
  const Shape shape = {
      any(random, {1, 5, 33}), any(random, {1, 3, 17, 70}), 8, 0, id % 2 ? 6 : 4, false, id % 3 > 0, id % 5 > 0, f32};
  const Index index(random, shape);
  const int64_t queries = 6, k = 5;
  const bool normalize = once_in(random, 3);
  Array<float> of(queries * shape.d), values(queries * k);
  Array<int64_t> positions(queries * k);
  for (int64_t q = 0; q < queries; ++q) {
    draw_query(random, of.data() + q * shape.d, shape.d, normalize, 1);
    if (q % 2) of[q * shape.d + int64_t(random() % shape.d)] = float(strange);
  }
  const Search op = {&index.ivf, of.data(),     normalize,       k, any(random, {1, 2, 17}), 30, Lookup(id / 2 % 2),
                     nullptr,    values.data(), positions.data()};
  const auto kernel = kernels.search.search[shape.bits == 6][int(op.lookup)];
  in_two_threads(queries, kernels.search.scratch_bytes(op, 3),
                 [&](int64_t b, int64_t e, void* scratch) { kernel(op, b, e, scratch); });
  for (int64_t i = 0; i < queries * k; ++i)
    expect(positions[i] >= -1 && positions[i] < index.n, "search: a position", f32, f32, id, double(positions[i]), 0);
  for (int64_t q = 0; q < queries; q += 2) check_query(index, op, {}, id, q);  // others do not suffer
}

void check_searches(Random& random) {
  for (int64_t id = 0; id < 400; ++id) {
    const int bits = id % 2 ? 6 : 4;
    const bool l2 = once_in(random, 2), normalize = once_in(random, 5),
               bytes = once_in(random, 2) && !(l2 && normalize);
    const int64_t extra = l2 ? whole(random, 1, 2) : 0;
    const int64_t parts = bits == 6 ? any(random, {4, 8}) : any(random, {2, 4, 6}) + (l2 ? 2 : 0);
    const Shape shape = {any(random, {1, 3, 4, 5, 8, 17, 31, 63, 64, 65, 130}),
                         any(random, {1, 2, 3, 15, 16, 17, 33}),
                         parts,
                         extra,
                         bits,
                         l2,
                         bytes,
                         once_in(random, 2),
                         any(random, {f32, f16, bf16})};
    const int64_t queries = id % 40 == 5 ? any(random, {129, 130, 260}) : any(random, {1, 2, 3, 4, 5, 8, 9, 13});
    const int64_t leaves = any(random, {1, 2, 3, 7, 15, 16, 40}), k = any(random, {1, 2, 5, 10, 70});
    const int64_t rerank = any(random, {1, 10, 30, 31, 64, 100, 250, 3000});
    check_search(random, id, shape, id / 2 % 2 ? Lookup::s8 : Lookup::u16, queries, leaves, k, rerank, normalize,
                 any(random, {0, 0, 1, 2, 2, 9, 1000}));
  }
}

// As many as are reranked, one more or one less; or few that go on.
void check_few(Random& random) {
  for (int64_t id = 1000; id < 1300; ++id) {
    const bool bytes = once_in(random, 2);
    const Shape shape = {any(random, {3, 8}),
                         any(random, {2, 3}),
                         4,
                         0,
                         id % 2 ? 6 : 4,
                         false,
                         bytes,
                         !bytes || once_in(random, 2),
                         f32};
    check_search(random, id, shape, id / 2 % 2 ? Lookup::s8 : Lookup::u16, 5, 3, any(random, {1, 2, 10}),
                 any(random, {0, -1, -2}), false, any(random, {0, 0, 9, 20}));
  }
}

void check_scans(Random& random) {
  int64_t id = 0;
  for (int64_t n : {0, 1, 31, 32, 33, 63, 64, 65, 300, 700})
    for (int bits : {4, 6})
      for (Lookup lookup : {Lookup::s8, Lookup::u16})
        for (int64_t queries : {1, 2, 3, 5, 8, 11}) {
          const int64_t k = any(random, {1, 2, 7, 33, 40, 400});
          const int64_t parts = bits == 6 ? any(random, {4, 8}) : any(random, {2, 4, 6, 8});
          check_scan(random, id++, n, lookup == Lookup::s8 || once_in(random, 2) ? parts : 5 * parts, bits, lookup,
                     queries, k, any(random, {0, 1, 2, 9}));
        }
}

void check_many(Random& random) {  // more than are held at once
  for (int i = 0; i < 24; ++i)
    check_scan(random, 1000 + i, 3000, any(random, {4, 8}), i % 2 ? 4 : 6, Lookup(i / 2 % 2), 1,
               any(random, {1, 2, 3, 4, 20, 100}), i % 3);
}

void check_reranks(Random& random) {
  int64_t id = 0;
  for (Dtype dtype : {f32, f16, bf16})
    for (int64_t d : {1, 3, 4, 7, 15, 16, 17, 31, 32, 33, 64, 65, 130})
      for (int64_t count : {0, 1, 2, 8, 9, 31, 32, 33, 100})
        check_rerank(random, id, dtype, d, count, any(random, {1, 2, 10, 33, 50}), id % 2), ++id;
}

}  // namespace

int main() {
  Random random(1);
  for (int64_t n : {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200})
    for (int64_t parts : {2, 4, 6, 8, 12})
      for (int bits : {4, 6})
        if (bits == 4 || parts % 4 == 0) check_pack(random, n, parts, bits);
  check_reranks(random);
  check_scans(random);
  check_many(random);
  check_searches(random);
  check_few(random);
  for (int64_t id = 0; id < 60; ++id)
    for (double strange : {double(NAN), double(INFINITY), -double(INFINITY), 3e38, 1e-40})
      check_strange(random, id, strange);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
