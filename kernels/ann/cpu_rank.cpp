// How many vectors are nearer to a query than some given ones: a matrix product whose tiles are counted where they are
// made. No scores are held, nothing is sorted.
//
// Floor: queries n d multiplications and additions (and subtractions for l2); the vectors are read once for kPanels
// panels of queries; a comparison a score, and two for each target where the score is not below all of them.
//
// Lanes are queries. A target's own score comes of the same instructions as everybody's, in the same order over the
// dimensions: equal vectors have equal scores.
#include "lanes.h"
#include "own_build.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int kRows = TAMIS_LANES == 16 ? 12 : 4, kVectors = 2;  // whose sums the registers hold
constexpr int64_t kPanel = kVectors * TAMIS_LANES;               // queries
constexpr int64_t kPanels = 8;                                   // that a block of vectors is read for
constexpr int64_t kBlock = 8 * kRows;                            // vectors

struct Target {  // of a panel of queries, one each
  F32 score[kVectors];
  I32 nearer[kVectors], equal[kVectors];
};

struct RankScratch {
  Target* targets;          // [kPanels, count]
  F32 (*lowest)[kVectors];  // [kPanels]: of their targets' scores
  float* queries;           // [kPanels, d, kPanel]
  float* rows;              // [kBlock / kRows, d, kRows]
  char* end;
  RankScratch(const Rank& op, void* at)
      : targets(static_cast<Target*>(at)),
        lowest(reinterpret_cast<F32 (*)[kVectors]>(targets + kPanels * op.count)),
        queries(reinterpret_cast<float*>(lowest + kPanels)),
        rows(queries + kPanels * op.d * kPanel),
        end(reinterpret_cast<char*>(rows + kBlock * op.d)) {}
};

template <bool kL2>
void scores(const float* rows, const float* panel, int64_t d, F32 (*sum)[kVectors]) {
  F32 own[kRows][kVectors] = {};
  for (int64_t i = 0; i < d; ++i) {
    F32 q[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) q[v] = load(panel + i * kPanel + v * TAMIS_LANES);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const float x = rows[i * kRows + r];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) kL2 ? own[r][v] -= (q[v] - x) * (q[v] - x) : own[r][v] += q[v] * x;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = own[r][v];
}

// Row `of` becomes one of kRows that are scored together.
template <class T>
void take(const Rank& op, int64_t of, float* to) {
  const T* const row = static_cast<const T*>(op.vectors) + of * op.d;
  int64_t i = 0;
  const auto put = [&](F32 some, int64_t n) {
    for (int64_t j = 0; j < n; ++j) to[(i + j) * kRows] = some[j];
  };
  for (; i + TAMIS_LANES <= op.d; i += TAMIS_LANES) put(load(row + i), TAMIS_LANES);
  if (i < op.d) put(load_tail(row + i, op.d - i, 0), op.d - i);  // equivalent: fill: any fill
}

// The scores that a panel's queries give their targets; those of nobody are infinite, which none exceeds.
template <class T, bool kL2>
void aim(const Rank& op, int64_t first, int64_t queries, const float* panel, float* rows, Target* targets,
         F32* lowest) {
  for (int64_t t = 0; t < op.count; ++t) {
    targets[t] = {};
    for (int v = 0; v < kVectors; ++v) targets[t].score[v] = F32{} + kInf;
  }
  for (int64_t q = 0; q < queries; ++q)
    for (int64_t begin = 0; begin < op.count; begin += kRows) {
      const int64_t n = upto(op.count - begin, kRows);
      const int64_t* const of = op.targets + (first + q) * op.count + begin;
      for (int64_t r = 0; r < n; ++r)
        if (of[r] >= 0) take<T>(op, of[r], rows + r);
      F32 sum[kRows][kVectors];
      scores<kL2>(rows, panel, op.d, sum);
      for (int64_t r = 0; r < n; ++r)
        if (of[r] >= 0)
          targets[begin + r].score[q / TAMIS_LANES][q % TAMIS_LANES] = sum[r][q / TAMIS_LANES][q % TAMIS_LANES];
    }
  for (int v = 0; v < kVectors; ++v) {
    lowest[v] = F32{} + kInf;
    for (int64_t t = 0; t < op.count; ++t)  // equivalent: bound: below the lowest nobody is counted
      lowest[v] = targets[t].score[v] < lowest[v] ? targets[t].score[v] : lowest[v];
  }
}

void count(const F32* sum, int32_t weight, const F32* lowest, Target* targets, int64_t n) {
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    if (__builtin_expect(!bits_of((I32)(sum[v] >= lowest[v])), 1)) continue;
    for (int64_t t = 0; t < n; ++t) {
      targets[t].nearer[v] += (I32)(sum[v] > targets[t].score[v]) & weight;
      targets[t].equal[v] += (I32)(sum[v] == targets[t].score[v]) & weight;
    }
  }
}

template <class T, bool kL2>
void rank(const Rank& op, int64_t begin, int64_t end, const RankScratch& own) {
  const int64_t panels = (end - begin + kPanel - 1) / kPanel;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t first = begin + p * kPanel, queries = upto(end - first, kPanel);
    float* const panel = own.queries + p * op.d * kPanel;
    for (int64_t q = 0; q < kPanel; ++q)
      for (int64_t i = 0; i < op.d; ++i) panel[i * kPanel + q] = q < queries ? op.queries[(first + q) * op.d + i] : 0;
    aim<T, kL2>(op, first, queries, panel, own.rows, own.targets + p * op.count, own.lowest[p]);
  }
  for (int64_t block = 0; block < op.n; block += kBlock) {
    const int64_t rows = upto(op.n - block, kBlock);
    for (int64_t r = 0; r < rows; ++r) take<T>(op, block + r, own.rows + r / kRows * kRows * op.d + r % kRows);
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t first = 0; first < rows; first += kRows) {
        F32 sum[kRows][kVectors];
        scores<kL2>(own.rows + first * op.d, own.queries + p * op.d * kPanel, op.d, sum);
        const int64_t some = upto(rows - first, kRows);
        for (int64_t r = 0; r < some; ++r) {
          const int32_t weight = op.weights ? op.weights[block + first + r] : 1;
          count(sum[r], weight, own.lowest[p], own.targets + p * op.count, op.count);
        }
      }
  }
  for (int64_t q = 0; q < end - begin; ++q)
    for (int64_t t = 0; t < op.count; ++t) {
      const int64_t at = (begin + q) * op.count + t, v = q % kPanel / TAMIS_LANES, lane = q % TAMIS_LANES;
      const Target& target = own.targets[q / kPanel * op.count + t];
      const float score = target.score[v][lane];
      const int64_t nearer = target.nearer[v][lane], place = nearer + (op.last ? target.equal[v][lane] : 1);
      op.ranks[at] = op.targets[at] < 0 ? -1 : score == score ? place : op.total;
    }
}

template <class T>
void rank(const Rank& op, int64_t begin, int64_t end, void* scratch) {
  const RankScratch own(op, scratch);
  for (; begin < end; begin += kPanels * kPanel) {
    const int64_t stop = begin + upto(end - begin, kPanels * kPanel);
    op.l2 ? rank<T, true>(op, begin, stop, own) : rank<T, false>(op, begin, stop, own);
  }
}

}  // namespace

int64_t rank_scratch_bytes(const Rank& op) { return RankScratch(op, nullptr).end - static_cast<char*>(nullptr); }
const RowKernel<Rank> rank_kernels[kDtypes] = {rank<float>, nullptr, rank<Float16>, rank<BFloat16>};

}  // namespace tamis::TAMIS_ISA
