// A sparse matrix times a dense one, and the dense one's rows against others: the four sparse products of an MLP's
// forward and backward.
// Floor: the dense rows that an entry names, read once; two operations a number. Rows are taken by tiles and the dense
// one's by blocks, both of which stay in L2, so a block comes from memory once a tile and from L2 for every entry. In
// the order of a row's indices, whatever the threads: the same bits always.
#include "../common/simd.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int64_t kTile = 64;               // rows at most
constexpr int64_t kTileBytes = 192 << 10;   // of a tile's sums
constexpr int64_t kBlockBytes = 384 << 10;  // of the dense one's rows
constexpr int64_t kTogether = 4;            // entries

int64_t padded(int64_t columns) { return columns / 64 * 64 + 64; }
int64_t tile_rows(int64_t columns) {
  const int64_t most = kTileBytes / (8 * padded(columns));
  return most < 1 ? 1 : upto(most, kTile);
}

// Calls visit(row, first, last) of the entries of rows begin..end, a tile, that lie in one block, block by block. Few
// rows do not share enough of a block.
template <class Visit>
void by_blocks(const Entries& of, int64_t begin, int64_t end, int64_t b_rows, int64_t row_bytes, const Visit& visit) {
  const bool all = end - begin < 4 || b_rows * row_bytes <= kBlockBytes;
  const int64_t block = all ? b_rows : kBlockBytes / row_bytes + 1;
  int64_t at[kTile];
  for (int64_t r = begin; r < end; ++r) at[r - begin] = of.begin[r];
  for (int64_t b = 0; b < b_rows; b += block)  // equivalent: bound: in a block more lies nothing
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = at[r - begin], last = of.begin[r] + of.count[r];
      int64_t e = first;
      while (e < last && of.index[e] < b + block) ++e;
      at[r - begin] = e;
      visit(r, first, e);
    }
}

// sum[columns] += weight * row, of `kRows` rows at once.
template <int kRows, class R, class T>
void add_rows(R* sum, const T* const* row, const R* weight, int64_t columns) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  int64_t c = 0;
  for (; c + lanes <= columns; c += lanes) {
    V all = load(sum + c);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) all += weight[i] * load(row[i] + c);
    store(sum + c, all);
  }
  if (c < columns) {
    V all = load(sum + c);  // sums are padded
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
      all += weight[i] * load_tail(row[i] + c, columns - c, 0);  // equivalent: fill: any fill, it goes to the padding
    store(sum + c, all);
  }
}

template <class T>
void gather(const Gather& op, int64_t begin, int64_t end, void* scratch) {
  using R = Real<T>;
  const Entries& of = op.entries;
  const int64_t width = padded(op.columns), tile = tile_rows(op.columns);
  R* const sums = static_cast<R*>(scratch);
  for (int64_t first = begin; first < end; first += tile) {
    const int64_t last = first + upto(end - first, tile);
    memset(sums, 0, (last - first) * width * sizeof(R));  // equivalent: part: a row ends in padding
    const int64_t row_bytes = op.columns * sizeof(T) * op.terms;
    by_blocks(of, first, last, op.b_rows, row_bytes, [&](int64_t r, int64_t e, int64_t past) {
      R* const sum = sums + (r - first) * width;
      const T* row[kTogether];
      R weight[kTogether];
      int have = 0;
      for (; e < past; ++e)
        for (int t = 0; t < op.terms; ++t) {
          row[have] = static_cast<const T*>(op.b[t]) + of.index[e] * op.b_stride[t];
          weight[have] = static_cast<const R*>(op.weight[t])[of.from ? of.from[e] : e];
          if (weight[have] == 0) continue;
          if (++have == kTogether) add_rows<kTogether>(sum, row, weight, op.columns), have = 0;
        }
      for (int i = 0; i < have; ++i) add_rows<1>(sum, row + i, weight + i, op.columns);
    });
    for (int64_t r = first; r < last; ++r) {
      const R* const sum = sums + (r - first) * width;
      T* const out = static_cast<T*>(op.out) + r * op.out_stride;
      const T* const bias = static_cast<const T*>(op.bias);
      using V = Vector<R>;
      for (int64_t c = 0; c < op.columns; c += kLanes<V>) {
        const int64_t left = op.columns - c;
        V v = load(sum + c);
        if (bias) v += left < kLanes<V> ? load_tail(bias + c, left) : load(bias + c);  // equivalent: fill: any fill
        left < kLanes<V> ? store_tail(out + c, left, v) : store(out + c, v);
      }
    }
  }
}

// out[i] = row[i] . y, of `kRows` rows at once.
template <int kRows, class R, class T>
void compare_rows(const T* y, const T* const* row, int64_t columns, R* out) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  V sum[kRows] = {};
  int64_t c = 0;
  for (; c + lanes <= columns; c += lanes) {
    const V v = load(y + c);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum[i] += v * load(row[i] + c);
  }
  if (c < columns) {
    const auto at = [&](const T* p) { return load_tail(p + c, columns - c, 0); };
    const V v = at(y);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum[i] += v * at(row[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) out[i] = reduce_add(sum[i]);
}

template <class T>
void compare(const Compare& op, int64_t begin, int64_t end, void*) {
  using R = Real<T>;
  const Entries& of = op.entries;
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t last = first + upto(end - first, kTile);
    by_blocks(of, first, last, op.b_rows, op.columns * sizeof(T), [&](int64_t r, int64_t e, int64_t past) {
      const T* const y = static_cast<const T*>(op.y) + r * op.y_stride;
      const auto row_at = [&](int64_t i) { return static_cast<const T*>(op.b) + of.index[i] * op.b_stride; };
      R* const out = static_cast<R*>(op.out);
      for (; e + kTogether <= past; e += kTogether) {
        const T* const row[kTogether] = {row_at(e), row_at(e + 1), row_at(e + 2), row_at(e + 3)};
        compare_rows<kTogether>(y, row, op.columns, out + e);
      }
      TAMIS_PROMISED(past - e < kTogether);
      for (; e < past; ++e) {
        const T* const row = row_at(e);
        compare_rows<1>(y, &row, op.columns, out + e);
      }
    });
  }
}

template <class R>
void compress(const Compress& op, int64_t begin, int64_t end, void*) {
  for (int64_t r = begin; r < end; ++r) {
    const R *const x = static_cast<const R*>(op.dense) + r * op.columns, *const where =
                                                                             static_cast<const R*>(op.where) +
                                                                             r * op.columns;
    int64_t at = op.begin ? op.begin[r] : 0;
    const int64_t first = at;
    for (int64_t i = 0; i < op.columns; ++i) {
      if (where[i] == 0) continue;
      if (op.index) op.index[at] = int32_t(i), static_cast<R*>(op.weight)[at] = x[i];
      ++at;
    }
    op.count[r] = int32_t(at - first);
  }
}

template <class T>
void expand(const Expand& op, int64_t begin, int64_t end, void*) {
  const Entries& of = op.entries;
  for (int64_t r = begin; r < end; ++r)
    for (int64_t e = of.begin[r]; e < of.begin[r] + of.count[r]; ++e)
      store_tail(static_cast<T*>(op.dense) + r * op.columns + of.index[e], 1,
                 Vector<Real<T>>{} + static_cast<const Real<T>*>(op.weight)[e]);
}

template <class R>
void total(const Total& op, int64_t begin, int64_t end, void*) {
  const Entries& of = op.entries;
  for (int64_t r = begin; r < end; ++r) {
    R sum = 0;
    for (int64_t e = of.begin[r]; e < of.begin[r] + of.count[r]; ++e)
      sum += static_cast<const R*>(op.weight)[of.from ? of.from[e] : e];
    static_cast<R*>(op.out)[r] = sum;
  }
}

}  // namespace

const RowKernel<Gather> gather_kernels[kDtypes] = {gather<float>, gather<double>, gather<Float16>, gather<BFloat16>};
const RowKernel<Compare> compare_kernels[kDtypes] = {compare<float>, compare<double>, compare<Float16>,
                                                     compare<BFloat16>};
const RowKernel<Compress> compress_kernels[2] = {compress<float>, compress<double>};
const RowKernel<Expand> expand_kernels[kDtypes] = {expand<float>, expand<double>, expand<Float16>, expand<BFloat16>};
const RowKernel<Total> total_kernels[2] = {total<float>, total<double>};

int64_t blocks_scratch_bytes(int64_t columns) {
  const int64_t row = 8 * padded(columns), tile = row > kTileBytes ? row : kTileBytes;
  return upto(tile, kTile * row);
}

void transpose(const Transpose& op, void* scratch) {
  const Entries& of = op.entries;
  int64_t* const next = static_cast<int64_t*>(scratch);
  memset(op.count, 0, op.columns * sizeof *op.count);
  for (int64_t r = 0; r < op.rows; ++r)
    for (int64_t e = of.begin[r]; e < of.begin[r] + of.count[r]; ++e) ++op.count[of.index[e]];
  for (int64_t c = 0, begin = 0; c < op.columns; ++c) op.begin[c] = next[c] = begin, begin += op.count[c];
  for (int64_t r = 0; r < op.rows; ++r)
    for (int64_t e = of.begin[r]; e < of.begin[r] + of.count[r]; ++e) {
      const int64_t to = next[of.index[e]]++;
      op.index[to] = int32_t(r), op.from[to] = int32_t(e);
    }
}

}  // namespace tamis::TAMIS_ISA
