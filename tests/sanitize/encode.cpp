// Drives the kernels that build an index, of one instruction set, without torch: under sanitizers (`make sanitize`), or
// another CPU's emulator. Every buffer is as long as its numbers and no longer, two threads share the rows, and results
// are held against plain loops in double.
#include "../../kernels/ann/encode.h"
#include "driver.h"

namespace {

double loss(const Numbers& r, const Numbers& u, double eta) {
  double square = 0, along = 0;
  for (size_t i = 0; i < r.size(); ++i) square += r[i] * r[i], along += r[i] * u[i];
  return square + (eta - 1) * along * along;
}

template <class R>
Array<char> copied(const Numbers& x) {
  Array<char> made(x.size() * sizeof(R));
  for (size_t i = 0; i < x.size(); ++i) {
    const R v = R(x[i]);
    memcpy(made.data() + i * sizeof(R), &v, sizeof(R));
  }
  return made;
}

// Numbers that float and both halves hold exactly where it matters that two are equal.
Numbers drawn(int64_t count, std::mt19937& random, double mean) {
  std::normal_distribution<double> normal(mean, 1);
  Numbers x(count);
  for (double& v : x) v = std::round(normal(random) * 64) / 64;
  return x;
}

int64_t all_rows = 0, other_rows = 0;

const int64_t kRowsTried[] = {1, 2, 31, 32, 33, 130};

// Codes that no change of one part betters, and of the nearest the nearest.
template <class R>
void check_encode(Dtype dtype, int64_t n, int64_t d, int64_t parts, int64_t centroids, double eta, int64_t rounds,
                  int64_t gap, double far = 0) {
  std::mt19937 random(unsigned(n * 131 + d * 17 + parts * 7 + centroids));
  const int64_t width = (d + parts - 1) / parts;
  Numbers books = drawn(parts * centroids * width, random, 0.5 + far);
  for (int64_t p = 0; p < parts; ++p)  // behind a narrower part's end nothing is looked at
    for (int64_t k = 0; k < centroids; ++k)
      for (int64_t i = cut(d, parts, p + 1) - cut(d, parts, p); i < width; ++i)
        books[(p * centroids + k) * width + i] = 1e30;
  for (int64_t k = 0; k < centroids; ++k)  // a part's last centroid is another's double
    if (k + 1 == centroids && k > 0)
      for (int64_t i = 0; i < width; ++i) books[k * width + i] = books[(k - 1) * width + i];
  const Array<char> memory = copied<R>(books);
  Logits x(dtype, n, d, gap), u(dtype, n, d, gap);
  x.fill(random, 1, far), u.fill(random, 1 / std::sqrt(double(d)));
  if (n > 5) x.put(3, d - 1, kNan), u.put(4, 0, kNan);
  Array<uint8_t> codes(n * parts);
  const int wide = dtype == f64;
  const auto& kernels = TAMIS_ISA::ann_build;
  PqEncode op = {};
  op.x = x.matrix(d);
  if (eta > 1) op.directions = u.matrix(d);
  op.codebooks = {memory.data(), d, parts, centroids};
  Array<char> tables(kernels.encode_tables[wide].bytes(op.codebooks));
  kernels.encode_tables[wide].make(op.codebooks, tables.data());
  op.tables = tables.data(), op.eta = eta, op.rounds = rounds, op.codes = codes.data();
  in_two_threads(n, kernels.encode_scratch_bytes[wide](op.codebooks),
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.encode[dtype](op, begin, end, scratch); });
  for (int64_t r = 0; r < n; ++r) {
    Numbers error(d), direction(d);
    bool finite = true;
    for (int64_t i = 0; i < d; ++i) {
      error[i] = x.at(r, i), direction[i] = eta > 1 ? u.at(r, i) : 0;
      finite = finite && std::isfinite(error[i]) && std::isfinite(direction[i]);
    }
    const uint8_t* const code = codes.data() + r * parts;
    for (int64_t p = 0; p < parts; ++p) {
      expect(finite ? code[p] < centroids : code[p] == 0, "encode: a code", dtype, dtype, d, code[p], 0);
      if (code[p] >= centroids) return;
    }
    if (!finite) continue;
    const auto set = [&](int64_t p, int64_t k) {
      for (int64_t i = cut(d, parts, p); i < cut(d, parts, p + 1); ++i)
        error[i] = x.at(r, i) - books[(p * centroids + k) * width + i - cut(d, parts, p)];
    };
    const auto settle = [&](double multiplier, int64_t most, std::vector<int64_t>& at) {
      for (int64_t round = 0, changed = 1; changed && round < most; ++round) {
        changed = 0;
        for (int64_t p = 0; p < parts; ++p) {
          int64_t best = 0;
          double least = INFINITY;
          for (int64_t k = 0; k < centroids; ++k) {
            set(p, k);
            const double value = loss(error, direction, multiplier);
            if (value < least) least = value, best = k;
          }
          set(p, best);
          changed |= best != at[p], at[p] = best;
        }
      }
    };
    std::vector<int64_t> wanted(parts);
    for (int64_t p = 0; p < parts; ++p) set(p, 0);
    settle(1, 1, wanted);
    if (eta > 1) settle(eta, rounds, wanted);
    for (int64_t p = 0; p < parts; ++p) set(p, wanted[p]);
    const double want = loss(error, direction, eta);
    bool same = true;
    for (int64_t p = 0; p < parts; ++p) set(p, code[p]), same = same && code[p] == wanted[p];
    const double got = loss(error, direction, eta);
    // Near ties may fall otherwise, and what follows differ with them; few rows do.
    ++all_rows, other_rows += !same;
    expect(same || std::abs(got - want) < 1e-5 * (1 + want) || (dtype != f64 && eta > 1 && got < 1.1 * want),
           "encode: a row's loss", dtype, dtype, d, got, want);
  }
}

template <class R>
void check_assign(Dtype dtype, int64_t n, int64_t d, int64_t count, bool ip, int64_t gap, double far = 0) {
  std::mt19937 random(unsigned(n * 131 + d * 17 + count));
  Numbers centroids = drawn(count * d, random, 0.5 + far);
  for (int64_t i = 0; count > 2 && i < d; ++i) centroids[(count - 1) * d + i] = centroids[(count - 2) * d + i];
  const Array<char> memory = copied<R>(centroids);
  Logits x(dtype, n, d, gap);
  x.fill(random, 1, far - 0.25);
  if (n > 5) x.put(3, d - 1, kNan), x.put(4, 0, kInfinity);
  Array<int64_t> indices(n);
  Array<char> distances(n * sizeof(R));
  const int wide = dtype == f64;
  const auto& kernels = TAMIS_ISA::ann_build;
  const Centroids given = {memory.data(), d, count, ip};
  Array<char> tables(kernels.assign_tables[wide].bytes(given));
  kernels.assign_tables[wide].make(given, tables.data());
  const Assign op = {x.matrix(d), given, tables.data(), indices.data(), distances.data()};
  in_two_threads(n, kernels.assign_scratch_bytes[wide](given),
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.assign[dtype](op, begin, end, scratch); });
  for (int64_t r = 0; r < n; ++r) {
    const auto value = [&](int64_t k) {
      double sum = 0;
      for (int64_t i = 0; i < d; ++i) {
        const double a = x.at(r, i), b = centroids[k * d + i];
        sum += ip ? a * b : (a - b) * (a - b);
      }
      return sum;
    };
    R got_;
    memcpy(&got_, distances.data() + r * sizeof(R), sizeof(R));
    const double got = got_;
    int64_t wanted = 0;
    bool finite = true;
    for (int64_t i = 0; i < d; ++i) finite = finite && std::isfinite(x.at(r, i));
    if (!finite) {
      expect(indices[r] == 0 && std::isnan(got), "assign: not finite", dtype, dtype, d, got, NAN);
      continue;
    }
    for (int64_t k = 1; k < count; ++k)
      if (ip ? value(k) > value(wanted) : value(k) < value(wanted)) wanted = k;
    const bool valid = indices[r] >= 0 && indices[r] < count;
    expect(valid, "assign: an index", dtype, dtype, d, double(indices[r]), double(wanted));
    if (!valid) continue;
    const double tolerance = (dtype == f64 ? 1e-12 : 1e-5) * (1 + d);
    expect(std::abs(value(indices[r]) - value(wanted)) < tolerance, "assign: the nearest", dtype, dtype, d,
           double(indices[r]), double(wanted));
    const double *const found = &centroids[indices[r] * d], *const first = &centroids[wanted * d];
    expect(indices[r] == wanted || !std::equal(found, found + d, first), "assign: the first of equals", dtype, dtype, d,
           double(indices[r]), double(wanted));
    expect(std::abs(got - value(indices[r])) < tolerance, "assign: the distance", dtype, dtype, d, got,
           value(indices[r]));
  }
}

// Of few whole numbers, whose scores are exact, so that many are equal.
void check_rank(Dtype dtype, int64_t queries, int64_t n, int64_t d, int64_t count, bool l2, bool last, bool weighted) {
  std::mt19937 random(unsigned(queries * 131 + n * 17 + d * 3 + count));
  Array<float> q(queries * d);
  for (float& x : q) x = float(random() % 5) - 2;
  Logits x(dtype, n, d, 0);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t i = 0; i < d; ++i) x.put(r, i, random() % 2 ? kTwenty : kTwentyOne);
  if (n > 3) x.put(2, d - 1, kNan);
  Array<int64_t> targets(queries * count), ranks(queries * count);
  for (int64_t& t : targets) t = int64_t(random() % (n + 1)) - 1;
  Array<int32_t> weights(n);
  int64_t total = 0;
  for (int32_t& w : weights) w = weighted ? int32_t(random() % 3) : 1, total += w;
  const Rank op = {q.data(), targets.data(), count,           d,
                   n,        total,          x.memory.data(), weighted ? weights.data() : nullptr,
                   l2,       last,           ranks.data()};
  const auto& kernels = TAMIS_ISA::ann_build;
  in_two_threads(queries, kernels.rank_scratch_bytes(op),
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.rank[dtype](op, begin, end, scratch); });
  for (int64_t i = 0; i < queries; ++i) {
    const auto score = [&](int64_t of) {
      double sum = 0;
      for (int64_t j = 0; j < d; ++j) {
        const double a = q[i * d + j], b = x.at(of, j);
        sum += l2 ? -(a - b) * (a - b) : a * b;
      }
      return sum;
    };
    for (int64_t t = 0; t < count; ++t) {
      const int64_t of = targets[i * count + t];
      int64_t want = last ? 0 : 1;
      for (int64_t j = 0; of >= 0 && j < n; ++j)
        want += score(j) > score(of) || (last && score(j) == score(of)) ? weights[j] : 0;
      if (of >= 0 && std::isnan(score(of))) want = total;
      if (of < 0) want = -1;
      expect(ranks[i * count + t] == want, "rank", dtype, dtype, d, double(ranks[i * count + t]), double(want));
    }
  }
}

void check_ranks() {
  for (Dtype dtype : {f32, f16, bf16})
    for (int64_t queries : {1, 2, 15, 16, 17, 33, 300})
      for (int64_t n : {1, 3, 4, 32, 33, 96, 97})
        for (int64_t d : {1, 4, 16, 31, 33})
          if (queries < 100 || n == 33)
            for (int64_t count : {1, 3, 4, 12, 13})
              check_rank(dtype, queries, n, d, count, (n + count) % 2, (n + d) % 2, (d + count) % 4 < 2);
}

template <class R>
void check_all(Dtype dtype) {
  struct Shape {
    int64_t d, parts, centroids;
  };
  for (int64_t n : kRowsTried)
    for (Shape s : {Shape{1, 1, 2}, Shape{7, 3, 16}, Shape{16, 16, 17}, Shape{20, 9, 33}, Shape{23, 6, 64},
                    Shape{19, 3, 5}, Shape{34, 17, 16}, Shape{100, 33, 20}, Shape{9, 2, 256}})
      for (double eta : {1.0, 4.0})
        for (int64_t rounds : {int64_t(10), int64_t(eta > 1), int64_t(3), int64_t(4)})
          if ((rounds == 10 || (eta > 1 && n == 33)) && (n < 100 || s.centroids < 50))
            check_encode<R>(dtype, n, s.d, s.parts, s.centroids, eta, rounds, n % 3 * 5);
  check_encode<R>(dtype, 2500, 6, 3, 4, 3.0, 10, 1);  // more than a block
  for (int64_t n : kRowsTried)
    for (int64_t d : {1, 3, 16, 17, 40})
      for (int64_t count : {1, 2, 3, 8, 16, 31, 32, 33, 70})
        for (bool ip : {false, true}) check_assign<R>(dtype, n, d, count, ip, n % 3 * 5);
}

// What is far from 0 as exactly as what is near.
void check_far() {
  for (int64_t centroids : {2, 5, 16})
    for (double eta : {1.0, 4.0}) check_encode<float>(f32, 33, 20, 9, centroids, eta, 10, 0, 4096);
  for (int64_t d : {1, 3, 17})
    for (int64_t count : {2, 3, 33}) check_assign<float>(f32, 33, d, count, false, 0, 4096);
}

}  // namespace

int main() {
  check_far();
  check_ranks();
  check_all<float>(f32);
  check_all<double>(f64);
  check_all<float>(f16);
  check_all<float>(bf16);
  expect(other_rows * 100 < all_rows, "encode: rows that differ", f32, f32, all_rows, double(other_rows), 0);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
