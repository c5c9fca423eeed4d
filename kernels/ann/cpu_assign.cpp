// The nearest of many centroids: a matrix product whose tiles are compared where they are made.
//
// Floor: n count d multiplications and additions; a row of scores is never in memory.
//
// Lanes are centroids: a tile is some rows and two vectors of them, whose sums stay in registers over all dimensions.
// The least score of each lane and its vector's number are a row's state; lanes are compared once, at the end, and the
// distance to the one found is then computed anew, so that it does not suffer from what cancels in scores.
//
// |x - c|^2 is 2 (|c|^2 / 2 - <x, c>) and what no c changes; both are counted from the centroids' mean. Of ip the score
// is -<x, c>.
#include "lanes.h"
#include "own_build.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int kRows = TAMIS_LANES == 16 ? 12 : 4, kVectors = 2;  // whose sums the registers hold
constexpr int64_t kChunk = 8 * kRows;                            // rows that a panel of centroids is read for

template <class R>
inline constexpr int64_t kPanel = kVectors * kLanes<Vector<R>>;

// Panels of kPanel centroids, each [1 + d, kPanel]: where scores start, then the numbers; then the mean [d].
template <class R>
struct AssignTables {
  const R* data;
  int64_t panels, step;

  AssignTables(const Centroids& c, const void* tables)
      : data(static_cast<const R*>(tables)),
        panels((c.count + kPanel<R> - 1) / kPanel<R>),
        step((1 + c.d) * kPanel<R>) {}
  const R* mean() const { return data + panels * step; }
};

template <class R>
int64_t tables_bytes(const Centroids& c) {
  const AssignTables<R> made(c, nullptr);
  return (made.panels * made.step + c.d) * int64_t(sizeof(R));
}

template <class R>
void make_tables(const Centroids& c, void* tables) {
  const AssignTables<R> made(c, tables);
  const R* const from = static_cast<const R*>(c.data);
  R *const to = static_cast<R*>(tables), *const mean = const_cast<R*>(made.mean());
  memset(tables, 0, tables_bytes<R>(c));
  for (int64_t i = 0; !c.ip && i < c.d; ++i) {
    double sum = 0;
    for (int64_t k = 0; k < c.count; ++k) sum += from[k * c.d + i];
    mean[i] = R(sum / double(c.count));
  }
  for (int64_t k = 0; k < made.panels * kPanel<R>; ++k) {
    R* const column = to + k / kPanel<R> * made.step + k % kPanel<R>;
    if (k >= c.count) column[0] = kInf;  // none
    for (int64_t i = 0; k < c.count && i < c.d; ++i) {
      const R x = from[k * c.d + i] - mean[i];
      column[(1 + i) * kPanel<R>] = x;
      if (!c.ip) column[0] += x * x / 2;
    }
  }
}

template <class R>
struct AssignScratch {
  using V = Vector<R>;
  V* best;           // [kChunk]
  Whole<R>* vector;  // [kChunk]: the number of the vector that the best came from
  R* x;              // [kChunk / kRows, d, kRows]: less the mean, negative
  AssignScratch(void* scratch)
      : best(static_cast<V*>(scratch)),
        vector(reinterpret_cast<Whole<R>*>(best + kChunk)),
        x(reinterpret_cast<R*>(vector + kChunk)) {}
};

template <class R>
int64_t scratch_bytes(const Centroids& c) {
  return kChunk * (2 * int64_t(sizeof(Vector<R>)) + c.d * int64_t(sizeof(R)));
}

// kRows rows against a panel.
template <class R>
void tile(const R* x, const R* panel, int64_t d, int64_t first, Vector<R>* best, Whole<R>* vector) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  V sum[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load(panel + v * lanes);
  for (int64_t i = 0; i < d; ++i) {
    panel += kPanel<R>;
    V c[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) c[v] = load(panel + v * lanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] += c[v] * x[i * kRows + r];
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Whole<R> number = Whole<R>{} + int(first + v);
      vector[r] = sum[r][v] < best[r] ? number : vector[r];
      best[r] = lesser(sum[r][v], best[r]);
    }
}

// Of the least score, of equals the first.
template <class R>
int64_t index_of(Vector<R> best, Whole<R> vector) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
  int64_t found = 0;
  R least = kInf;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t index = vector[lane] * lanes + lane;
    if (best[lane] < least || (best[lane] == least && index < found))  // equivalent: bound: no index comes twice
      found = index, least = best[lane];
  }
  return least < kInf ? found : 0;
}

// The squared distance, or the inner product; NaN where a number of x is not finite.
template <class T>
Real<T> compare(const T* x, const Real<T>* c, int64_t d, bool ip) {
  using V = Vector<Real<T>>;
  constexpr int64_t lanes = kLanes<V>;
  V sum{}, zero{};
  for (int64_t i = 0; i < d; i += lanes) {
    const int64_t n = upto(d - i, lanes);
    const V a = n == lanes ? load(x + i) : load_upto(x + i, n, 0);
    const V b = n == lanes ? load(c + i) : load_upto(c + i, n, 0);
    sum += ip ? a * b : (a - b) * (a - b);
    zero += a * 0;
  }
  return reduce_add(sum) + reduce_add(zero);
}

template <class T>
void assign(const Assign& op, int64_t begin, int64_t end, void* scratch) {
  using R = Real<T>;
  constexpr int64_t lanes = kLanes<Vector<R>>;
  const Centroids& c = op.centroids;
  const AssignTables<R> tables(c, op.tables);
  const R* const mean = tables.mean();
  const AssignScratch<R> own(scratch);
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    const int64_t count = upto(end - chunk, kChunk), tiles = (count + kRows - 1) / kRows;
    for (int64_t r = 0; r < tiles * kRows; ++r) {
      const int64_t at = r < count ? r : count - 1;  // equivalent: minimum: the last is the last either way
      const T* const row = row_of<T>(op.x, chunk + at);
      R* const to = own.x + r / kRows * kRows * c.d + r % kRows;
      for (int64_t i = 0; i < c.d; i += lanes) {
        const int64_t n = upto(c.d - i, lanes);
        const auto some = n == lanes ? load(row + i) : load_upto(row + i, n, 0);  // equivalent: fill: any fill
        for (int64_t j = 0; j < n; ++j) to[(i + j) * kRows] = mean[i + j] - some[j];
      }
      own.best[r] = Vector<R>{} + kInf;
      own.vector[r] = Whole<R>{};
    }
    for (int64_t p = 0; p < tables.panels; ++p)
      for (int64_t t = 0; t < tiles; ++t)
        tile<R>(own.x + t * kRows * c.d, tables.data + p * tables.step, c.d, p * kVectors, own.best + t * kRows,
                own.vector + t * kRows);
    for (int64_t r = 0; r < count; ++r) {
      const T* const row = row_of<T>(op.x, chunk + r);
      const R* const centroids = static_cast<const R*>(c.data);
      const int64_t index = index_of<R>(own.best[r], own.vector[r]);
      const R distance = compare(row, centroids + index * c.d, c.d, c.ip);
      op.indices[chunk + r] = distance == distance ? index : 0;
      static_cast<R*>(op.distances)[chunk + r] = distance;
    }
  }
}

}  // namespace

const Tables<Centroids> assign_tables[2] = {{tables_bytes<float>, make_tables<float>},
                                            {tables_bytes<double>, make_tables<double>}};
int64_t (*const assign_scratch_bytes[2])(const Centroids&) = {scratch_bytes<float>, scratch_bytes<double>};
const RowKernel<Assign> assign_kernels[kDtypes] = {assign<float>, assign<double>, assign<Float16>, assign<BFloat16>};

}  // namespace tamis::TAMIS_ISA
