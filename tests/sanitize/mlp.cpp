// Drives the kernels of a top-k MLP of one instruction set without torch, as topk.cpp does the selection: exactly sized
// buffers, two threads, numbers held against plain loops.
#include "../../kernels/sparse_mlp/cpu.h"
#include <numeric>
#include "driver.h"

namespace {

const SparseMlpKernels& kernels = TAMIS_ISA::sparse_mlp;

template <class R>
Array<R> numbers(int64_t count, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Array<R> x(count);
  for (R& v : x) v = R(normal(random));
  return x;
}

void near(const char* what, Dtype dtype, int64_t size, double got, double want, double scale) {
  expect(std::fabs(got - want) <= 40 * (kEps[dtype] < 1e-9 ? 1e-15 : std::max(kEps[dtype], 1e-6)) * (1 + scale), what,
         dtype, dtype, size, got, want);
}

double act(Activation a, double x) {
  switch (a) {
    case relu:
      return x > 0 ? x : 0;
    case squared_relu:
      return x > 0 ? x * x : 0;
    case gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case gelu_tanh:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    default:
      return x / (1 + std::exp(-x));
  }
}

template <class R>
void check_gemv(Dtype dtype, int64_t tokens, int64_t size, int64_t rows, std::mt19937& random) {
  Logits w(dtype, rows, size, 3), bias(dtype, 1, rows, 0);
  w.fill(random, 1), bias.fill(random, 1);
  const Array<R> x = numbers<R>(tokens * size, random);
  Array<R> out(tokens * rows);
  const Gemv op = {tokens, size, x.data(), w.memory.data(), w.stride, bias.memory.data(), out.data(), rows};
  in_two_threads(rows, 64, [&](int64_t begin, int64_t end, void*) { kernels.gemv[dtype](op, begin, end, nullptr); });
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      double sum = bias.at(0, r), scale = 0;
      for (int64_t i = 0; i < size; ++i)
        sum += x[t * size + i] * w.at(r, i), scale += std::fabs(x[t * size + i] * w.at(r, i));
      near("gemv", sizeof(R) == 8 ? f64 : f32, size, out[t * rows + r], sum, scale);
    }
}

// Pre-activations are what a backward pass wants; with them, a hidden value of 0 counts where it has a gradient.
template <class R>
void check_select(Dtype dtype, int64_t n, int64_t k, Activation a, bool gated, bool saves, std::mt19937& random) {
  const int64_t tokens = 5;
  const Dtype real = sizeof(R) == 8 ? f64 : f32;
  Logits up(dtype, tokens, n, 1), gate(dtype, tokens, n, 2);
  up.fill(random, 1), gate.fill(random, 1);
  Array<int32_t> count(tokens), index(tokens * k);
  Array<R> hidden(tokens * k), up_at(tokens * k), gate_at(tokens * k);
  const Select op = {up.matrix(n),
                     gated ? gate.matrix(n) : Matrix{},
                     k,
                     a,
                     count.data(),
                     index.data(),
                     hidden.data(),
                     saves ? up_at.data() : nullptr,
                     saves && gated ? gate_at.data() : nullptr};
  in_two_threads(tokens, kernels.select_scratch_bytes(n, k),
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.select[dtype](op, begin, end, scratch); });
  for (int64_t t = 0; t < tokens; ++t) {
    Numbers all(n), rank(n);
    for (int64_t i = 0; i < n; ++i) {
      all[i] = gated ? act(a, gate.at(t, i)) * up.at(t, i) : act(a, up.at(t, i));
      rank[i] = gated ? std::fabs(all[i]) : all[i];
    }
    std::vector<int64_t> best(n);
    std::iota(best.begin(), best.end(), 0);
    std::stable_sort(best.begin(), best.end(), [&](int64_t i, int64_t j) { return rank[i] > rank[j]; });
    const int64_t wanted = std::count_if(best.begin(), best.begin() + k, [&](int64_t i) {
      const bool off = a <= squared_relu && !(gated && gate.at(t, i) > 0);
      return all[i] != 0 || (saves && !off);
    });
    expect(count[t] == wanted, "how many are active", dtype, dtype, n, count[t], wanted);
    for (int64_t e = t * k; e < t * k + count[t]; ++e) {
      const int64_t i = index[e];
      expect(e == t * k || i > index[e - 1], "ascending", dtype, dtype, n, i, e);
      expect(rank[i] >= rank[best[k - 1]] - 1e-5, "selection", dtype, dtype, n, rank[i], rank[best[k - 1]]);
      near("hidden", real, n, hidden[e], all[i], std::fabs(all[i]));
      if (saves) expect(up_at[e] == R(up.at(t, i)), "pre-activation", dtype, dtype, n, up_at[e], up.at(t, i));
      if (saves && gated) expect(gate_at[e] == R(gate.at(t, i)), "gate", dtype, dtype, n, gate_at[e], gate.at(t, i));
    }
  }
}

// The entries of each column: in the order of the rows.
void check_transpose(const Entries& of, int64_t rows, const Transpose& by) {
  Array<int64_t> next(rows);
  std::copy(of.begin, of.begin + rows, next.begin());
  for (int64_t c = 0, entries = 0; c < by.columns; entries += by.count[c++]) {
    expect(by.begin[c] == entries, "transpose", f32, f32, by.columns, by.begin[c], entries);
    for (int64_t e = entries; e < entries + by.count[c]; ++e) {
      const int64_t r = by.index[e], from = by.from[e];
      expect(next[r]++ == from && of.index[from] == c, "transpose", f32, f32, by.columns, of.index[from], c);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    expect(next[r] == of.begin[r] + of.count[r], "transpose", f32, f32, r, next[r], of.begin[r] + of.count[r]);
}

template <class R>
void check_products(Dtype dtype, int64_t rows, int64_t b_rows, int64_t columns, std::mt19937& random) {
  Logits b(dtype, b_rows, columns, 1), y(dtype, rows, columns, 2), bias(dtype, 1, columns, 0);
  b.fill(random, 1), y.fill(random, 1), bias.fill(random, 1);
  Array<int64_t> begin(rows);
  Array<int32_t> count(rows), index;
  for (int64_t r = 0; r < rows; ++r) {
    begin[r] = index.size();
    for (int64_t i = 0; i < b_rows; ++i)
      if (random() % 3 == 0) index.push_back(int32_t(i));
    count[r] = int32_t(index.size() - begin[r]);
  }
  index.shrink_to_fit();
  const int64_t entries = index.size();
  const Array<R> weight[2] = {numbers<R>(entries, random), numbers<R>(entries, random)};
  const Entries of = {begin.data(), count.data(), index.data(), nullptr};
  Logits out(dtype, rows, columns, 0);
  for (int terms = 1; terms <= 2; ++terms) {
    const Gather op = {of,
                       terms,
                       {weight[0].data(), weight[1].data()},
                       {b.memory.data(), b.memory.data()},
                       b_rows,
                       {b.stride, b.stride},
                       columns,
                       terms == 1 ? nullptr : bias.memory.data(),
                       out.memory.data(),
                       columns};
    in_two_threads(rows, kernels.blocks_scratch_bytes(columns), [&](int64_t first, int64_t last, void* scratch) {
      kernels.gather[dtype](op, first, last, scratch);
    });
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        double sum = terms == 1 ? 0 : bias.at(0, c), scale = std::fabs(sum);
        for (int64_t e = begin[r]; e < begin[r] + count[r]; ++e)
          for (int t = 0; t < terms; ++t)
            sum += weight[t][e] * b.at(index[e], c), scale += std::fabs(weight[t][e] * b.at(index[e], c));
        near("gather", dtype, columns, out.at(r, c), sum, scale);
      }
  }
  Array<R> products(entries);
  const Compare compare = {of, b.memory.data(), b_rows, b.stride, columns, y.memory.data(), y.stride, products.data()};
  in_two_threads(rows, 64,
                 [&](int64_t first, int64_t last, void*) { kernels.compare[dtype](compare, first, last, nullptr); });
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t e = begin[r]; e < begin[r] + count[r]; ++e) {
      double sum = 0, scale = 0;
      for (int64_t c = 0; c < columns; ++c)
        sum += b.at(index[e], c) * y.at(r, c), scale += std::fabs(b.at(index[e], c) * y.at(r, c));
      near("compare", sizeof(R) == 8 ? f64 : f32, columns, products[e], sum, scale);
    }
  Array<int64_t> of_column(b_rows), scratch(b_rows);
  Array<int32_t> column_count(b_rows), row_of_entry(entries), from(entries);
  const Transpose transposed = {of,         rows, b_rows, of_column.data(), column_count.data(), row_of_entry.data(),
                                from.data()};
  kernels.transpose(transposed, scratch.data());
  check_transpose(of, rows, transposed);
  Array<R> total(b_rows);
  const Entries columns_of = {of_column.data(), column_count.data(), row_of_entry.data(), from.data()};
  in_two_threads(b_rows, 64, [&](int64_t first, int64_t last, void*) {
    kernels.total[sizeof(R) == 8]({columns_of, weight[0].data(), total.data()}, first, last, nullptr);
  });
  for (int64_t i = 0; i < b_rows; ++i) {
    double sum = 0;
    for (int64_t e = 0; e < entries; ++e) sum += index[e] == i ? weight[0][e] : 0;
    near("total", sizeof(R) == 8 ? f64 : f32, rows, total[i], sum, rows);
  }
}

// Dense numbers to entries, where others are not 0, and back: a number there may itself be 0 or NaN.
template <class R>
void check_dense(Dtype dtype, int64_t columns, std::mt19937& random) {
  const int64_t rows = 5;
  Array<R> dense = numbers<R>(rows * columns, random), where = numbers<R>(rows * columns, random);
  for (R& v : where)
    if (random() % 2) v = random() % 2 ? R(0) : R(-0.0);
  where[random() % where.size()] = R(NAN), dense[random() % dense.size()] = R(NAN), dense[0] = 0, where[0] = 1;
  Array<int32_t> count(rows);
  Compress op = {dense.data(), where.data(), columns, nullptr, count.data(), nullptr, nullptr};
  const auto run = [&] {
    in_two_threads(rows, 64, [&](int64_t b, int64_t e, void*) { kernels.compress[sizeof(R) == 8](op, b, e, nullptr); });
  };
  run();
  Array<int64_t> begin(rows);
  int64_t entries = 0;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t wanted = 0;
    for (int64_t c = 0; c < columns; ++c) wanted += where[r * columns + c] != 0;
    expect(count[r] == wanted, "entries of a row", dtype, dtype, columns, count[r], wanted);
    begin[r] = entries, entries += count[r];
  }
  Array<int32_t> index(entries);
  Array<R> weight(entries);
  op.begin = begin.data(), op.index = index.data(), op.weight = weight.data();
  run();
  Logits back(dtype, rows, columns, 0);
  std::fill(back.memory.begin(), back.memory.end(), 0);
  const Expand expand = {
      {begin.data(), count.data(), index.data(), nullptr}, columns, weight.data(), back.memory.data()};
  in_two_threads(rows, 64, [&](int64_t b, int64_t e, void*) { kernels.expand[dtype](expand, b, e, nullptr); });
  for (int64_t i = 0; i < rows * columns; ++i) {
    const double got = back.at(i / columns, i % columns), want = where[i] != 0 ? dense[i] : R(0);
    expect(std::fabs(got - want) <= 2 * kEps[dtype] * (std::fabs(want) + 1) || (got != got && want != want), "dense",
           dtype, dtype, columns, got, want);
  }
}

template <class R>
void check_slopes(int64_t entries, Activation a, bool gated, std::mt19937& random) {
  const Array<R> d = numbers<R>(entries, random), up = numbers<R>(entries, random), gate = numbers<R>(entries, random);
  Array<R> d_up(entries), d_gate(entries);
  const Slope op = {
      a, d.data(), up.data(), gated ? gate.data() : nullptr, d_up.data(), gated ? d_gate.data() : nullptr};
  in_two_threads(entries, 64,
                 [&](int64_t begin, int64_t end, void*) { kernels.slope[sizeof(R) == 8](op, begin, end, nullptr); });
  for (int64_t e = 0; e < entries; ++e) {
    const double at = gated ? gate[e] : up[e], slope = (act(a, at + 1e-6) - act(a, at - 1e-6)) / 2e-6;
    expect(std::fabs((gated ? d_gate[e] : d_up[e]) - d[e] * slope * (gated ? up[e] : 1)) < 1e-4, "slope", f32, f32,
           entries, gated ? d_gate[e] : d_up[e], d[e] * slope);
    if (gated) near("slope of up", sizeof(R) == 8 ? f64 : f32, entries, d_up[e], d[e] * act(a, gate[e]), 1);
  }
}

template <class R>
void check_gaussian(Dtype dtype, int64_t n, double unit, double mean_of_all, std::mt19937& random) {
  const int64_t rows = 3;
  Logits x(dtype, rows, n, 2), grad(dtype, rows, n, 0), out(dtype, rows, n, 0), back(dtype, rows, n, 0);
  x.fill(random, unit, unit * mean_of_all), grad.fill(random, 1);
  const double deviations = 0.7;
  GaussianTopK op = {x.matrix(n), deviations, nullptr, out.memory.data()};
  in_two_threads(rows, 64, [&](int64_t b, int64_t e, void*) { kernels.gaussian[dtype](op, b, e, nullptr); });
  op.grad = grad.memory.data(), op.out = back.memory.data();
  in_two_threads(rows, 64, [&](int64_t b, int64_t e, void*) { kernels.gaussian_backward[dtype](op, b, e, nullptr); });
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, square = 0, passed = 0;
    for (int64_t i = 0; i < n; ++i) mean += x.at(r, i) / n;
    for (int64_t i = 0; i < n; ++i) square += (x.at(r, i) - mean) * (x.at(r, i) - mean) / n;
    const double std = std::sqrt(square), cut = mean + std * deviations;
    bool sure = std > 1e-3 * unit;
    for (int64_t i = 0; i < n; ++i)
      sure &= std::fabs(x.at(r, i) - cut) > 1e-5 * unit, passed += x.at(r, i) > cut ? grad.at(r, i) / n : 0;
    for (int64_t i = 0; i < n; ++i) {
      near("gaussian", dtype, n, out.at(r, i), std::max(0.0, x.at(r, i) - cut), 3 * unit);
      const double want =
          (x.at(r, i) > cut ? grad.at(r, i) : 0) - passed - passed * deviations * (x.at(r, i) - mean) / std;
      if (sure) near("its gradient", dtype, n, back.at(r, i), want, 10);
    }
  }
}

template <class R>
void check_all(Dtype dtype, std::mt19937& random) {
  for (int64_t tokens = 1; tokens <= kFewTokens; ++tokens)
    for (int64_t size : {1, 15, 16, 17, 33, 130}) check_gemv<R>(dtype, tokens, size, 1 + 3 * tokens, random);
  for (int a = 0; a < kActivations; ++a)
    for (int64_t n : {1, 17, 31, 64, 65, 300})
      for (bool gated : {false, true})
        for (bool saves : {false, true})
          for (int64_t k : {1 + n / 3, n}) check_select<R>(dtype, n, k, Activation(a), gated, saves, random);
  for (int64_t columns : {1, 15, 16, 33, 70})
    for (int64_t rows : {1, 3, 9, 150}) check_products<R>(dtype, rows, rows == 9 ? 1 : 40, columns, random);
  check_products<R>(dtype, 70, 200, 1100, random);  // more than a block
  for (int64_t columns : {1, 2, 16, 33}) check_dense<R>(dtype, columns, random);
  for (int64_t n : {1, 2, 15, 16, 17, 100})
    for (double mean : {0, -3}) check_gaussian<R>(dtype, n, 1, mean, random);  // below: the cut is under 0
  if (dtype != f16) check_gaussian<R>(dtype, 23, 1e30, 0, random);             // squares leave the range
}

}  // namespace

int main() {
  std::mt19937 random(1);
  check_all<float>(f32, random);
  check_all<double>(f64, random);
  check_all<float>(f16, random);
  check_all<float>(bf16, random);
  int64_t bytes = 0;
  for (int64_t columns = 1; columns < 30000; ++columns) {  // threads that share the columns have what all would need
    const int64_t more = kernels.blocks_scratch_bytes(columns);
    expect(bytes <= more, "memory of fewer columns", f64, f64, columns, bytes, more);
    bytes = more;
  }
  for (int a = 0; a < kActivations; ++a)
    for (int64_t entries : {1, 15, 16, 17, 30, 100})
      for (bool gated : {false, true})
        check_slopes<float>(entries, Activation(a), gated, random),
            check_slopes<double>(entries, Activation(a), gated, random);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
