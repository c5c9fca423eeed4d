// Product quantizer codes: of each part the nearest centroid, or the codes of least |r|^2 + (eta - 1) <r, u>^2 with r
// what they miss of x and u a direction, by coordinate descent over the parts.
//
// Floor: a sweep takes 2 w + 1 multiplications and additions for a row and a centroid of w dimensions (the nearest: w),
// a comparison and two selections.
//
// Lanes are rows: the least of all centroids then needs no search across lanes, and parts of any width fill them. Rows
// that stand still leave; those that remain are gathered for the next rounds, or a few would keep many. What a row gets
// does not depend on the rows beside it.
//
// |r - c|^2 + <r - c + rest, v>^2, v = sqrt(eta - 1) u, is 2 (|c|^2 / 2 - <c, t> + <c, v>^2 / 2) and what no c changes,
// with t = r + s v and s = <r + rest, v>. Parts are counted from their centroids' mean, so that little cancels.
#include "lanes.h"
#include "own_build.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int kGroups = TAMIS_LANES == 16 ? 2 : 1;  // vectors of rows side by side: as many as the registers hold
constexpr int64_t kBlock = 1024;                    // rows of which those that remain are gathered
constexpr int kSweeps = 3;                          // until they are

template <class R>
inline constexpr int kRows = kGroups * kLanes<Vector<R>>;

inline int64_t padded(int64_t centroids) { return (centroids + 15) / 16 * 16; }
inline int64_t width_of(const Codebooks& c) { return (c.d + c.parts - 1) / c.parts; }

// Of each part, [width + 1, padded(centroids)]: the centroids from their mean, by dimension, and half their squares, at
// the row of the part's own width. Then the means [d].
template <class R>
struct EncodeTables {
  const R* data;
  int64_t size, step;

  EncodeTables(const Codebooks& c, const void* tables)
      : data(static_cast<const R*>(tables)), size(padded(c.centroids)), step((width_of(c) + 1) * size) {}
  const R* part(int64_t p) const { return data + p * step; }
  const R* means(const Codebooks& c) const { return data + c.parts * step; }
};

template <class R>
int64_t encode_tables_bytes(const Codebooks& c) {
  return (EncodeTables<R>(c, nullptr).step * c.parts + c.d) * int64_t(sizeof(R));
}

template <class R>
void make_encode_tables(const Codebooks& c, void* tables) {
  const EncodeTables<R> made(c, tables);
  memset(tables, 0, encode_tables_bytes<R>(c));
  const int64_t width = width_of(c);
  for (int64_t p = 0; p < c.parts; ++p) {
    const R* const from = static_cast<const R*>(c.data) + p * c.centroids * width;
    R *const to = const_cast<R*>(made.part(p)), *const means = const_cast<R*>(made.means(c));
    const int64_t begin = cut(c.d, c.parts, p), w = cut(c.d, c.parts, p + 1) - begin;
    for (int64_t i = 0; i < w; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < c.centroids; ++k) sum += from[k * width + i];
      means[begin + i] = R(sum / double(c.centroids));
      for (int64_t k = 0; k < c.centroids; ++k) {
        const R x = from[k * width + i] - means[begin + i];
        to[i * made.size + k] = x;
        to[w * made.size + k] += x * x / 2;
      }
    }
  }
}

// One group of rows, in the thread's scratch.
template <class R>
struct Group {
  using V = Vector<R>;
  using W = Whole<R>;
  V *x, *v, *along, *goal, *turn;  // [d] each, less the means; sqrt(eta - 1) u; <c, v> by part; of wide parts, t and u
  W* code;                         // by part; all [, kGroups]
  V rest[kGroups], finite[kGroups];

  Group(const Codebooks& c, void* scratch) : x(static_cast<V*>(scratch)) {
    v = x + c.d * kGroups;
    along = v + c.d * kGroups;
    goal = along + c.parts * kGroups;
    turn = goal + width_of(c) * kGroups;
    code = reinterpret_cast<W*>(turn + width_of(c) * kGroups);
  }
  static int64_t bytes(const Codebooks& c) { return 2 * (c.d + c.parts + width_of(c)) * kGroups * int64_t(sizeof(V)); }
};

// The centroid of least |c|^2 / 2 - <c, goal> [+ <c, turn>^2] of each row; kWidth 0: of any width. Of equals the first.
template <class R, int kWidth, bool kTurned>
inline void least(const R* part, int64_t size, int64_t centroids, int64_t w, const Vector<R>* goal,
                  const Vector<R>* turn, Whole<R>* found) {
  using V = Vector<R>;
  using W = Whole<R>;
  constexpr int kept = kWidth ? kWidth * kGroups : 1;
  V kept_goal[kept], kept_turn[kept], best[kGroups];
  W index[kGroups], k_everywhere{};
  if constexpr (kWidth != 0) {
    w = kWidth;
#pragma GCC unroll 8
    for (int i = 0; i < kept; ++i) {
      kept_goal[i] = goal[i];
      kept_turn[i] = kTurned ? turn[i] : V{};
    }
    goal = kept_goal, turn = kept_turn;
  }
#pragma GCC unroll 2
  for (int g = 0; g < kGroups; ++g) best[g] = V{} + kInf, index[g] = W{};
  for (int64_t k = 0; k < centroids; ++k, k_everywhere += 1) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      V score = part[w * size + k] - V{}, along{};
#pragma GCC unroll 4
      for (int64_t i = 0; i < w; ++i) {
        score -= part[i * size + k] * goal[i * kGroups + g];
        if (kTurned) along += part[i * size + k] * turn[i * kGroups + g];
      }
      if (kTurned) score += along * along;
      index[g] = score < best[g] ? k_everywhere : index[g];
      best[g] = lesser(score, best[g]);
    }
  }
#pragma GCC unroll 2
  for (int g = 0; g < kGroups; ++g) found[g] = index[g];
}

template <class R, bool kTurned>
inline void least_of(const R* part, int64_t size, int64_t centroids, int64_t w, const Vector<R>* goal,
                     const Vector<R>* turn, Whole<R>* found) {
  switch (w) {
    case 1:
      return least<R, 1, kTurned>(part, size, centroids, w, goal, turn, found);
    case 2:
      return least<R, 2, kTurned>(part, size, centroids, w, goal, turn, found);
    case 3:
      return least<R, 3, kTurned>(part, size, centroids, w, goal, turn, found);
    case 4:
      return least<R, 4, kTurned>(part, size, centroids, w, goal, turn, found);
    default:
      return least<R, 0, kTurned>(part, size, centroids, w, goal, turn, found);
  }
}

// Rows become lanes.
template <class T>
void turn_in(const Matrix& m, const int64_t* rows, int64_t d, Vector<Real<T>>* out) {
  using V = Vector<Real<T>>;
  constexpr int64_t lanes = kLanes<V>;
  for (int64_t g = 0; g < kGroups; ++g)
    for (int64_t c = 0; c < d; c += lanes) {
      const int64_t n = upto(d - c, lanes);
      V tile[lanes];
      for (int64_t r = 0; r < lanes; ++r) {
        const T* const p = row_of<T>(m, rows[g * lanes + r]) + c;
        tile[r] = n == lanes ? load(p) : load_upto(p, n, 0);  // equivalent: fill: what fills is not kept
      }
      transpose(tile);
      for (int64_t i = 0; i < n; ++i) out[(c + i) * kGroups + g] = tile[i];
    }
}

// Codes, there and back.
template <class R>
void codes_in(const PqEncode& op, const int64_t* rows, Whole<R>* code) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
  const int64_t parts = op.codebooks.parts;
  for (int64_t i = 0; i < kRows<R>; ++i)
    for (int64_t p = 0; p < parts; ++p) code[p * kGroups + i / lanes][i % lanes] = op.codes[rows[i] * parts + p];
}
template <class R>
void codes_out(const PqEncode& op, const int64_t* rows, const Group<R>& group) {
  using W = Whole<R>;
  constexpr int64_t lanes = kLanes<W>;
  const int64_t parts = op.codebooks.parts;
  for (int64_t g = 0; g < kGroups; ++g) {
    const W finite = group.finite[g] == 0;
    for (int64_t p = 0; p < parts; p += lanes) {
      const int64_t n = upto(parts - p, lanes);
      W tile[lanes] = {};
      for (int64_t i = 0; i < n; ++i) tile[i] = group.code[(p + i) * kGroups + g] & finite;
      transpose(tile);
      for (int64_t r = 0; r < lanes; ++r) {
        const auto bytes = __builtin_convertvector(tile[r], Bytes<W>);
        memcpy(op.codes + rows[g * lanes + r] * parts + p, &bytes, n * sizeof(uint8_t));
      }
    }
  }
}

template <class R>
void nearest(const PqEncode& op, Group<R>& group) {
  const Codebooks& c = op.codebooks;
  const EncodeTables<R> tables(c, op.tables);
  for (int64_t p = 0, begin = 0; p < c.parts; ++p) {
    const int64_t end = cut(c.d, c.parts, p + 1);
    least_of<R, false>(tables.part(p), tables.size, c.centroids, end - begin, group.x + begin * kGroups, nullptr,
                       group.code + p * kGroups);
    begin = end;
  }
}

// <c, v> of the rows' centroids in a part.
template <class R>
inline Vector<R> along_of(const R* part, int64_t size, int64_t w, Whole<R> code, const Vector<R>* v) {
  Vector<R> sum{};
  for (int64_t i = 0; i < w; ++i) sum += look_up(part + i * size, size, code) * v[i * kGroups];
  return sum;
}

// <x - decoded, v>, and each part's own share of what is decoded.
template <class R>
void start(const PqEncode& op, Group<R>& group) {
  using V = Vector<R>;
  const Codebooks& c = op.codebooks;
  const EncodeTables<R> tables(c, op.tables);
  for (int64_t g = 0; g < kGroups; ++g) {
    V sum{};
    for (int64_t p = 0, begin = 0; p < c.parts; ++p) {
      const int64_t end = cut(c.d, c.parts, p + 1), at = p * kGroups + g;
      for (int64_t i = begin; i < end; ++i) sum += group.x[i * kGroups + g] * group.v[i * kGroups + g];
      group.along[at] =
          along_of(tables.part(p), tables.size, end - begin, group.code[at], group.v + begin * kGroups + g);
      sum -= group.along[at];
      begin = end;
    }
    group.rest[g] = sum;
  }
}

// Each part in turn; which rows changed.
template <class R>
void sweep(const PqEncode& op, Group<R>& group, Whole<R>* changed) {
  using V = Vector<R>;
  using W = Whole<R>;
  const Codebooks& c = op.codebooks;
  const EncodeTables<R> tables(c, op.tables);
  const R half = R(0.70710678118654752);
  for (int64_t g = 0; g < kGroups; ++g) changed[g] = W{};
  for (int64_t p = 0, begin = 0; p < c.parts; ++p) {
    const int64_t end = cut(c.d, c.parts, p + 1), w = end - begin;
    V s[kGroups];
    W found[kGroups];
    for (int64_t g = 0; g < kGroups; ++g) {
      s[g] = group.rest[g] + group.along[p * kGroups + g];
      for (int64_t i = 0; i < w; ++i) {
        const int64_t at = i * kGroups + g, from = (begin + i) * kGroups + g;
        group.goal[at] = group.x[from] + s[g] * group.v[from];
        group.turn[at] = group.v[from] * half;
      }
    }
    least_of<R, true>(tables.part(p), tables.size, c.centroids, w, group.goal, group.turn, found);
    for (int64_t g = 0; g < kGroups; ++g) {
      const int64_t at = p * kGroups + g;
      const W other = found[g] != group.code[at];  // a row that stays keeps its bits: it then stays for good
      const V along = along_of(tables.part(p), tables.size, w, found[g], group.v + begin * kGroups + g);
      group.along[at] = other ? along : group.along[at];
      group.rest[g] = other ? s[g] - along : group.rest[g];
      group.code[at] = found[g];
      changed[g] |= other;
    }
    begin = end;
  }
}

template <class T>
void take_in(const PqEncode& op, const int64_t* rows, bool directed, Group<Real<T>>& group) {
  using R = Real<T>;
  const Codebooks& c = op.codebooks;
  const R* const means = EncodeTables<R>(c, op.tables).means(c);
  const R root = R(sqrt(op.eta - 1));
  turn_in<T>(op.x, rows, c.d, group.x);
  if (directed) turn_in<T>(op.directions, rows, c.d, group.v);
  for (int64_t g = 0; g < kGroups; ++g) {
    group.finite[g] = Vector<R>{};  // 0, or NaN
    for (int64_t i = 0; i < c.d; ++i) {
      const int64_t at = i * kGroups + g;
      group.finite[g] += group.x[at] * 0;
      group.x[at] -= means[i];
      if (!directed) continue;
      group.finite[g] += group.v[at] * 0;
      group.v[at] *= root;
    }
  }
}

template <class T>
void encode(const PqEncode& op, int64_t begin, int64_t end, void* scratch) {
  using R = Real<T>;
  using W = Whole<R>;
  constexpr int64_t lanes = kLanes<W>;
  Group<R> group(op.codebooks, scratch);
  const bool directed = op.directions.data && op.eta > 1 && op.rounds > 0;
  for (int64_t block = begin; block < end; block += kBlock) {
    int64_t rows[kBlock], count = upto(end - block, kBlock);
    for (int64_t i = 0; i < count; ++i) rows[i] = block + i;
    for (int64_t round = 0; count && (round == 0 || round < op.rounds); round += kSweeps) {
      int64_t left = 0;
      for (int64_t at = 0; at < count; at += kRows<R>) {
        const int64_t n = upto(count - at, kRows<R>);
        int64_t some[kRows<R>];
        for (int64_t i = 0; i < kRows<R>; ++i)
          some[i] = rows[at + (i < n ? i : n - 1)];  // equivalent: minimum: the last is the last either way
        take_in<T>(op, some, directed, group);
        round ? codes_in<R>(op, some, group.code) : nearest<R>(op, group);
        W changed[kGroups] = {};
        if (directed) {
          start<R>(op, group);
          const int64_t sweeps = upto(op.rounds - round, kSweeps);
          for (int64_t i = 0; i < sweeps; ++i) sweep<R>(op, group, changed);
        }
        codes_out<R>(op, some, group);
        for (int64_t i = 0; i < n; ++i)
          if (changed[i / lanes][i % lanes]) rows[left++] = some[i];
      }
      count = left;
    }
  }
}

template <class R>
int64_t encode_scratch_bytes(const Codebooks& c) {
  return Group<R>::bytes(c);
}

const RowKernel<PqEncode> encode_kernels[kDtypes] = {encode<float>, encode<double>, encode<Float16>, encode<BFloat16>};

}  // namespace

const AnnBuildKernels ann_build = {
    {{encode_tables_bytes<float>, make_encode_tables<float>},
     {encode_tables_bytes<double>, make_encode_tables<double>}},
    {encode_scratch_bytes<float>, encode_scratch_bytes<double>},
    encode_kernels,
    {assign_tables[0], assign_tables[1]},
    {assign_scratch_bytes[0], assign_scratch_bytes[1]},
    assign_kernels,
    rank_scratch_bytes,
    rank_kernels,
};

}  // namespace tamis::TAMIS_ISA
