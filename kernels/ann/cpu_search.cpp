// Search of an index: lists whose centroids are near, their codes, then the vectors of the best.
// Floor, a query: the centroids' bytes; the codes of its lists, which the queries of a batch share; a lookup and an
// addition a code, one instruction each for as many codes as a register has bytes; `rerank` rows of bytes and about
// 1.5 k of the exact vectors, each a miss of the caches.
#include "rerank.h"
#include "scan.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int64_t kTile = 128;  // queries that walk the lists together
constexpr int64_t kStep = 64;   // bytes of a row of bytes are a multiple of it

int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// What is read again exactly, of candidates whose bytes were compared.
int64_t finalists(int64_t k) { return k + k / 2 + 1; }

enum Start { kShare, kAll, kLowest };  // see begin_query

struct Query {
  Collector to;
  Table table;
  const float* x;
  float* own;       // [d]: x, where it is not the query as it was given
  int8_t* bytes;    // [d to kStep]: round(x / scale)
  Factor* factors;  // [d / 4]: of bytes
  float scale;
  int32_t sum;  // of bytes
  Start start;
  int64_t lists;
  int32_t *list, *add;  // [lists]; the best first
  float *apart, base;   // [lists]: what add stands for, from the best list's
  float furthest;       // of apart
};

// Parts of one allocation, in order.
struct Arena {
  char* at;
  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(at);
    at += padded(count * (int64_t)sizeof(T), 64);
    return taken;
  }
};

struct Space {
  Query* queries;          // [tile]
  float *scores, *keys;    // [kMostQueries, leaves to 16]
  float* lut;              // [parts, centroids]
  int32_t *head, *asking;  // [leaves]; [tile * leaves]: which query, and what it adds
  int32_t* adds;

  Space(Arena arena, const Search& op, int64_t tile) {
    const Ivf& ivf = *op.index;
    const int64_t all = padded(ivf.leaves, 16), lists = least(op.leaves, ivf.leaves);
    const int64_t capacity = 2 * op.rerank + 256;
    queries = arena.take<Query>(tile);
    scores = arena.take<float>(kMostQueries * all), keys = arena.take<float>(kMostQueries * all);
    lut = arena.take<float>(ivf.codes.parts << ivf.codes.bits);
    head = arena.take<int32_t>(ivf.leaves);
    asking = arena.take<int32_t>(tile * lists), adds = arena.take<int32_t>(tile * lists);
    Candidate* const spare = arena.take<Candidate>(capacity);
    for (int64_t i = tile; i-- > 0;) {
      Query q;
      q.to.found = arena.take<Candidate>(capacity), q.to.capacity = capacity, q.to.spare = spare;
      q.table.entries = arena.take<uint8_t>(table_bytes(ivf.codes.bits, ivf.codes.parts));
      q.own = arena.take<float>(op.normalize || ivf.center ? ivf.d : 0),
      q.bytes = arena.take<int8_t>(padded(ivf.d, kStep));
      q.factors = arena.take<Factor>((ivf.d + 3) / 4);
      q.list = arena.take<int32_t>(lists), q.apart = arena.take<float>(lists), q.add = arena.take<int32_t>(lists);
      if (queries) queries[i] = q;  // null where only the size is asked for
    }
    end = arena.at;
  }
  char* end;
};

int64_t size_of(const Search& op, int64_t tile) { return Space(Arena{nullptr}, op, tile).end - (char*)nullptr; }

// Less where many candidates of each would not stay in the caches.
int64_t tile_of(const Search& op, int64_t queries) {
  constexpr int64_t kMost = 32 << 20;  // bytes, but for one query
  int64_t tile = least(queries, kTile);
  while (tile > 1 && size_of(op, tile) > kMost) tile = (tile + 1) / 2;
  return tile;
}

int64_t scratch_bytes(const Search& op, int64_t queries) { return size_of(op, tile_of(op, queries)); }

void take_query(const Search& op, int64_t query, Query& q) {
  const int64_t d = op.index->d;
  const float *x = op.queries + query * d, *const center = op.index->center;
  if (center) {
    for (int64_t i = 0; i < d; ++i) q.own[i] = x[i] - center[i];
    x = q.own;
  }
  q.x = op.normalize ? q.own : x;
  if (!op.normalize) return;
  F32 squares = {};
  int64_t i = 0;
  for (; i + TAMIS_LANES <= d; i += TAMIS_LANES) squares += load(x + i) * load(x + i);
  if (i < d) {
    const F32 last = load_tail(x + i, d - i, 0);
    squares += last * last;
  }
  const float square = reduce_add(squares);
  if (square > 1e-30f && square < 1e30f) {
    const float by = 1 / sqrtf(square);
    for (i = 0; i < d; ++i) q.own[i] = x[i] * by;
    return;
  }
  double wide = 0;  // a square that neither overflows nor vanishes
  for (i = 0; i < d; ++i) wide += (double)x[i] * x[i];
  for (i = 0; i < d; ++i) q.own[i] = wide > 0 ? (float)(x[i] / sqrt(wide)) : 0;
}

void quantize(const Ivf& ivf, Query& q) {
  F32 most = F32{} + 1e-30f;
  int64_t i = 0;
  for (; i + TAMIS_LANES <= ivf.d; i += TAMIS_LANES) {
    const F32 x = load(q.x + i);
    most = max(max(x, -x), most);
  }
  if (i < ivf.d) {
    const F32 x = load_tail(q.x + i, ivf.d - i, 0);
    most = max(max(x, -x), most);
  }
  q.scale = reduce_max(most) / 127;
  const float by = 1 / q.scale;
  I32 sum = {};
  memset(q.bytes, 0, padded(ivf.d, kStep));
  for (i = 0; i < ivf.d; i += TAMIS_LANES) {
    const int64_t left = ivf.d - i;
    const F32 scaled = (left < TAMIS_LANES ? load_tail(q.x + i, left, 0) : load(q.x + i)) * by;
    const I32 x = rounded(scaled == scaled ? scaled : F32{});  // of a NaN, or of infinity, nothing
    sum += x;
    store_bytes(reinterpret_cast<uint8_t*>(q.bytes + i), x);
  }
  q.sum = reduce_add(sum);
  const int64_t steps = (ivf.d + 3) / 4;
  for (i = 0; i != steps; ++i) q.factors[i] = Factor(q.bytes + 4 * i);
}

// Each list's q.c, of kQueries queries at once.
template <int kQueries>
void score_lists(const Ivf& ivf, const Query* queries, float* scores) {
  const int64_t steps = (ivf.d + 3) / 4, all = padded(ivf.leaves, 16);
  const Factor* factors[kQueries];
  for (int q = 0; q < kQueries; ++q) factors[q] = queries[q].factors;
  for (int64_t first = 0; first != all; first += TAMIS_LANES) {
    const uint8_t* const c = ivf.centroids + first / 16 * steps * 64 + first % 16 * 4;
    I32 sum[kQueries] = {};
    for (int64_t step = 0; step < steps; ++step) {
      const U8 row = load_bytes(c + step * 64);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sum[q] = dot4(sum[q], row, factors[q][step]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      const float by = ivf.centroid_scale * queries[q].scale;
      store(scores + q * all + first, __builtin_convertvector(sum[q] - 128 * queries[q].sum, F32) * by);
    }
  }
}

int64_t count_above(const float* keys, int64_t n, float than) {  // n: a multiple of 16
  I32 count[16 / TAMIS_LANES] = {};
  for (int64_t i = 0; i != n; i += 16)
#pragma GCC unroll 4
    for (int j = 0; j < 16 / TAMIS_LANES; ++j) count[j] -= load(keys + i + j * TAMIS_LANES) >= than;
  for (int j = 1; j < 16 / TAMIS_LANES; ++j) count[0] += count[j];
  return reduce_add(count[0]);
}

// The lists of a query, by the largest q.c less their bias; the best first, the others ascending.
void choose_lists(const Ivf& ivf, Query& q, int64_t wanted, const float* scores, float* keys) {
  const int64_t all = padded(ivf.leaves, 16);
  F32 low = F32{} + kInf, high = F32{} - kInf;
  for (int64_t i = 0; i != all; i += TAMIS_LANES) {
    const int64_t left = ivf.leaves - i;
    F32 bias = F32{} + kInf;
    if (left >= TAMIS_LANES)
      bias = load(ivf.order_bias + i);
    else if (left > 0)
      bias = load_tail(ivf.order_bias + i, left, kInf);  // equivalent: fill: infinity and one is infinity
    const F32 key = load(scores + i) - bias;
    store(keys + i, key);
    low = min(key > -kInf ? key : low, low), high = max(key, high);
  }
  // Between `from`, which enough reach, and `to`, which too few do.
  float from = -reduce_max(-low), to = reduce_max(high);
  const float best = to;
  to = nextafterf(to, kInf);
  for (int i = 0; i < 40; ++i) {
    const float middle = from + (to - from) / 2;
    if (!(middle > from && middle < to)) break;
    const int64_t count = count_above(keys, all, middle);
    (count >= wanted ? from : to) = middle;  // equivalent: bound: where so many reach it, either end will do
    if (count == wanted) break;
  }
  int64_t above = count_above(keys, all, to);
  q.lists = 0;
  int64_t first = -1;
  for (int64_t i = 0; i != all; i += TAMIS_LANES) {
    const F32 key = load(keys + i);
    for (uint64_t found = bits_of((I32)(key >= from)); found; found &= found - 1) {
      const int64_t list = i + __builtin_ctzll(found);
      if (q.lists == wanted) break;                      // of many at infinity
      if (keys[list] < to && above >= wanted) continue;  // of equal ones the first
      above += keys[list] < to;
      if (keys[list] == best && first < 0) first = q.lists;
      q.list[q.lists++] = (int32_t)list;
    }
  }
  if (first < 0) first = 0;
  if (q.lists == 0) q.list[q.lists++] = 0;  // no key is a finite number, as of a query with infinity
  const int32_t front = q.list[first];      // the others keep their order
  memmove(q.list + 1, q.list, first * sizeof *q.list);
  q.list[0] = front;
  q.base = scores[front] + ivf.score_bias[front];
  q.furthest = 0;
  for (int64_t i = 0; i < q.lists; ++i) {
    q.apart[i] = scores[q.list[i]] + ivf.score_bias[q.list[i]] - q.base;
    q.furthest = max(fabsf(q.apart[i]), q.furthest);
  }
}

// After its lists are chosen.
template <Lookup kLookup>
void tabulate(const Ivf& ivf, Query& q, float* lut) {
  const int64_t parts = ivf.codes.parts - ivf.extra, centroids = int64_t{1} << ivf.codes.bits;
  const int64_t width = (ivf.d + parts - 1) / parts;
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t begin = cut(ivf.d, parts, p), end = cut(ivf.d, parts, p + 1);
    const float* const of = ivf.codebooks + p * width * centroids;
    for (int64_t c = 0; c != centroids; c += TAMIS_LANES) {
      F32 dot = {};
      for (int64_t i = begin; i < end; ++i) dot += q.x[i] * load(of + (i - begin) * centroids + c);
      store(lut + p * centroids + c, dot);
    }
  }
  if (ivf.extra) memcpy(lut + parts * centroids, ivf.constants, ivf.extra * centroids * sizeof *lut);
  // What lists are apart stays a number of units, however little the codes spread.
  constexpr float kMostUnits = 1 << 28;
  const float finest = q.furthest > 0 ? kMostUnits / q.furthest : kInf;
  uint8_t* const entries = const_cast<uint8_t*>(q.table.entries);
  q.table = make_table<kLookup>(lut, ivf.codes.parts, centroids, entries, finest);
  q.table.offset += q.base;
  for (int64_t i = 0; i < q.lists; ++i) q.add[i] = (int32_t)clamped(rintf(q.apart[i] * q.table.scale), -1e9f, 1e9f);
}

Run run_of(const Ivf& ivf, int64_t list, int64_t next) {
  const int64_t bytes = block_bytes(ivf.codes.bits, ivf.codes.parts);
  const auto blocks = [&](int64_t of) { return ivf.codes.blocks + ivf.block[of] * bytes; };
  return {blocks(list), bytes, ivf.start[list + 1] - ivf.start[list], ivf.start[list], blocks(next)};
}

// The best list's scores say where the threshold starts: at what a share of `rerank` of them reaches. Where half of
// `rerank` does not come of it, nor k, the lists are walked again, from what as many as `rerank` reach; from the lowest
// score of any list where the best has not so many, or all have not.
constexpr float kOfBest = 0.6f;

template <class Layout, Lookup kLookup>
void begin_query(const Ivf& ivf, Query& q, int64_t rerank, const uint64_t* allowed, Start from) {
  int64_t there = 0;
  for (int64_t i = 0; i < q.lists; ++i) there += ivf.start[q.list[i] + 1] - ivf.start[q.list[i]];
  if (there <= rerank) from = kLowest;
  q.start = from;
  constexpr int kLow = kLookup == Lookup::s8 ? -128 : 0, kStep = kLookup == Lookup::s8 ? 1 : 256;
  int reached = 0;  // steps above kLow, by as many as wanted
  if (from != kLowest) {
    constexpr int64_t kMost = 1024 / Layout::kVectors;  // blocks: of a longer list the first vectors say it
    const Run run = run_of(ivf, q.list[0], q.list[0]);
    const int64_t blocks = least(blocks_of<Layout>(run), kMost);
    Sums<Layout, kLookup> sums[kMost][1];
    const S8 start = Layout::start(0);
    sum_blocks<Layout, kLookup, 1>({run.blocks, run.bytes, run.vectors, run.position, nullptr}, 0, blocks,
                                   ivf.codes.parts, &q.table.entries, &start, sums);
    uint64_t some[kMost];
    for (int64_t b = 0; b < blocks; ++b) some[b] = allowed_of<Layout>(run, b, allowed);
    const float share = from == kShare && q.lists > 1 ? kOfBest : 1;
    const int64_t wanted = (int64_t)(share * rerank) + 1;
    for (int step = 128; step; step /= 2) {
      int64_t count = 0;
      for (int64_t b = 0; b < blocks; ++b)
        count += __builtin_popcountll(sums[b]->at_least(kLow + (reached + step) * kStep) & some[b]);
      if (count >= wanted) reached += step;
    }
  }
  int32_t threshold = q.add[0] + kLow + reached * kStep;
  if (from == kLowest)
    for (int64_t i = 0; i < q.lists; ++i) threshold = (int32_t)least(threshold, q.add[i] + kLow);
  q.to.start(rerank, threshold, kLookup == Lookup::s8 ? 0 : 5);
}

template <class Layout, Lookup kLookup>
void scan_lists(const Ivf& ivf, Query& q, const uint64_t* allowed) {
  for (int64_t i = 0; i < q.lists; ++i) {
    const Asker asker = {&q.to, q.table.entries, q.add[i]};
    if (Aim<kLookup>(asker).passes_none(asker)) continue;
    scan<Layout, kLookup, 1>(run_of(ivf, q.list[i], q.list[least(i + 1, q.lists - 1)]), ivf.codes.parts, &asker,
                             allowed);
  }
}

template <class Layout, Lookup kLookup>
void scan_again(const Ivf& ivf, Query& q, int64_t k, int64_t rerank, const uint64_t* allowed) {
  const int64_t enough = k > rerank / 2 ? k : rerank / 2;
  constexpr Start kAgain[] = {kAll, kLowest};
  for (const Start from : kAgain) {
    if (q.to.size >= enough || q.start == kLowest) return;
    begin_query<Layout, kLookup>(ivf, q, rerank, allowed, from);
    scan_lists<Layout, kLookup>(ivf, q, allowed);
  }
}

int64_t exact_size(const Ivf& ivf) { return ivf.exact_dtype == f32 ? 4 : 2; }
const char* exact_row(const Ivf& ivf, uint32_t position) {
  return static_cast<const char*>(ivf.exact.data) + position * ivf.exact.stride * exact_size(ivf);
}

void compare_bytes(const Ivf& ivf, Query& q, int64_t k) {
  constexpr int64_t kFetch = 16;  // rows
  const auto row = [&](const Candidate& one) {
    return static_cast<const uint8_t*>(ivf.bytes.data) + one.position * ivf.bytes.stride;
  };
  Collector& to = q.to;
  to.settle();
  if (ivf.bytes.data) {
    const float by = ivf.byte_scale * q.scale;
    for (int64_t i = 0; i < to.size; ++i) {
      Candidate& one = to.found[i];
      prefetch(row(to.found[least(i + kFetch, to.size - 1)]), ivf.bytes.stride);
      const float dot = (float)(byte_dot(row(one), q.bytes, padded(ivf.d, kStep)) - 128 * q.sum) * by;
      one.score = ordered(ivf.half_norms ? dot - ivf.half_norms[one.position] : dot);
    }
    const int64_t most = ivf.exact.data ? finalists(k) : k;
    partition(to.found, to.spare, to.size, most), to.size = least(to.size, most);
  }
  if (ivf.exact.data)
    for (const Candidate one : to) prefetch(exact_row(ivf, one.position), ivf.d * exact_size(ivf));
}

void finish(const Search& op, Query& q, float* values, int64_t* positions) {
  const Ivf& ivf = *op.index;
  Collector& to = q.to;
  const bool l2 = ivf.half_norms != nullptr;
  if (ivf.exact.data) {
    const ExactScore of = ivf.exact_dtype == f32    ? exact_score_of<float>(l2)
                          : ivf.exact_dtype == bf16 ? exact_score_of<BFloat16>(l2)
                                                    : exact_score_of<Float16>(l2);
    for (Candidate& one : to) one.score = ordered(of(q.x, exact_row(ivf, one.position), ivf.d));
  }
  to.size = sort_best(to.found, to.spare, to.size, op.k);
  float square = 0;  // of the query, where -|q - x|^2 is to be made of q.x - |x|^2 / 2
  if (l2 && !ivf.exact.data)
    for (int64_t i = 0; i < ivf.d; ++i) square += q.x[i] * q.x[i];
  for (int64_t i = 0; i < op.k; ++i) {
    if (i >= to.size) {
      values[i] = l2 ? kInf : -kInf, positions[i] = -1;
      continue;
    }
    float value = ivf.exact.data || ivf.bytes.data ? unordered(to.found[i].score)
                                                   : (float)to.found[i].score / q.table.scale + q.table.offset;
    if (l2) value = ivf.exact.data ? 0 - value : max(square - 2 * value, 0.0f);
    values[i] = value, positions[i] = to.found[i].position;
  }
}

template <int kQueries>
void prepare_lists(const Search& op, Query* queries, const Space& space) {
  const Ivf& ivf = *op.index;
  const int64_t all = padded(ivf.leaves, 16);
  score_lists<kQueries>(ivf, queries, space.scores);
  for (int q = 0; q < kQueries; ++q)
    choose_lists(ivf, queries[q], least(op.leaves, ivf.leaves), space.scores + q * all, space.keys);
}

template <class Layout, Lookup kLookup>
void search_one(const Search& op, int64_t query, const Space& space) {
  const Ivf& ivf = *op.index;
  Query* const q = space.queries;
  take_query(op, query, *q);
  quantize(ivf, *q);
  prepare_lists<1>(op, q, space);
  tabulate<kLookup>(ivf, *q, space.lut);
  begin_query<Layout, kLookup>(ivf, *q, op.rerank, op.allowed, kShare);
  scan_lists<Layout, kLookup>(ivf, *q, op.allowed);
  scan_again<Layout, kLookup>(ivf, *q, op.k, op.rerank, op.allowed);
  compare_bytes(ivf, *q, op.k);
  finish(op, *q, op.values + query * op.k, op.positions + query * op.k);
}

template <class Layout, Lookup kLookup>
void search_tile(const Search& op, int64_t begin, int64_t n, const Space& space) {
  const Ivf& ivf = *op.index;
  Query* const queries = space.queries;
  memset(space.head, 0, padded(ivf.leaves, 16) * sizeof *space.head);
  for (int64_t i = 0; i < n; ++i) {
    take_query(op, begin + i, queries[i]);
    quantize(ivf, queries[i]);
  }
  for (int64_t four = 0; four < n / kMostQueries; ++four)
    prepare_lists<kMostQueries>(op, queries + four * kMostQueries, space);
  for (int64_t i = n / kMostQueries * kMostQueries; i < n; ++i) prepare_lists<1>(op, queries + i, space);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t following = queries[least(i + 1, n - 1)].list[0];
    const Run next = run_of(ivf, following, following);
    prefetch(next.blocks, blocks_of<Layout>(next) * next.bytes);
    Query& q = queries[i];
    tabulate<kLookup>(ivf, q, space.lut);
    begin_query<Layout, kLookup>(ivf, q, op.rerank, op.allowed, kShare);
    for (int64_t j = 0; j < q.lists; ++j) ++space.head[q.list[j]];
  }
  int32_t asked = 0;
  for (int64_t l = 0; l < ivf.leaves; ++l) {  // equivalent: bound: one more is nobody's
    const int32_t count = space.head[l];
    space.head[l] = asked, asked += count;
  }
  for (int64_t i = 0; i < n; ++i)  // after this head[l] is where list l ends
    for (int64_t j = 0; j < queries[i].lists; ++j) {
      const int32_t at = space.head[queries[i].list[j]]++;
      space.asking[at] = (int32_t)i, space.adds[at] = queries[i].add[j];
    }
  int32_t at = 0;
  for (int64_t l = 0; l < ivf.leaves; ++l) {
    Asker askers[kMostQueries];
    int count = 0;
    Run run = run_of(ivf, l, least(l + 1, ivf.leaves - 1));
    for (; at < space.head[l]; ++at) {
      Query& q = queries[space.asking[at]];
      askers[count] = {&q.to, q.table.entries, space.adds[at]};
      if (Aim<kLookup>(askers[count]).passes_none(askers[count])) continue;
      if (++count == kMostQueries)
        scan_each<Layout, kLookup>(run, ivf.codes.parts, askers, count, op.allowed), count = 0, run.next = nullptr;
    }
    scan_each<Layout, kLookup>(run, ivf.codes.parts, askers, count, op.allowed);
  }
  for (int64_t i = 0; i < n; ++i) scan_again<Layout, kLookup>(ivf, queries[i], op.k, op.rerank, op.allowed);
  for (int64_t i = 0; i < n + 1; ++i) {  // a query behind, whose exact rows are on their way
    if (i < n) compare_bytes(ivf, queries[i], op.k);
    if (i >= 1) finish(op, queries[i - 1], op.values + (begin + i - 1) * op.k, op.positions + (begin + i - 1) * op.k);
  }
}

template <class Layout, Lookup kLookup>
void search(const Search& op, int64_t begin, int64_t end, void* scratch) {
  const int64_t tile = tile_of(op, end - begin);
  const Space space(Arena{static_cast<char*>(scratch)}, op, tile);
  for (; begin < end; begin += tile) {
    const int64_t n = least(end - begin, tile);
    n == 1 ? search_one<Layout, kLookup>(op, begin, space) : search_tile<Layout, kLookup>(op, begin, n, space);
  }
}

}  // namespace

extern const AnnSearch search_kernels;
const AnnSearch search_kernels = {
    {{search<Four, Lookup::s8>, search<Four, Lookup::u16>}, {search<Six, Lookup::s8>, search<Six, Lookup::u16>}},
    scratch_bytes};

}  // namespace tamis::TAMIS_ISA
