// A flat list of codes against tables, and how codes are laid out for it.
// Floor: the codes read once for four queries; a lookup and an addition a code, one instruction each for as many codes
// as a register has bytes.
#include "rerank.h"
#include "scan.h"

namespace tamis::TAMIS_ISA {
namespace {

void pack(const Pack& op, int64_t begin, int64_t end, void*) {
  const int64_t vectors = block_vectors(op.bits), bytes = block_bytes(op.bits, op.parts);
  memset(op.out + begin * bytes, 0, (end - begin) * bytes);
  for (int64_t block = begin; block < end; ++block) {
    uint8_t* const out = op.out + block * bytes;
    for (int64_t v = 0; v < vectors && block * vectors + v < op.n; ++v) {
      const uint8_t* const code = op.codes + (block * vectors + v) * op.parts;
      for (int64_t p = 0; p < op.parts; ++p) {
        if (op.bits == 4) {
          out[p * 16 + v % 16] |= (uint8_t)(code[p] << (v / 16 * 4));
        } else if (p % 4 < 3) {
          out[p / 4 * 192 + p % 4 * 64 + v] |= code[p];
        } else {
          for (int third = 0; third < 3; ++third)
            out[p / 4 * 192 + third * 64 + v] |= (uint8_t)((code[p] >> (2 * third) & 3) << 6);
        }
      }
    }
  }
}

int64_t capacity_of(int64_t k) { return 2 * k + 256; }

struct Held {  // for one query
  Collector to;
  Table table;
};

int64_t held_bytes(const Scan& op) {
  const int64_t candidates = capacity_of(op.k) * (int64_t)sizeof(Candidate);
  return ((int64_t)sizeof(Held) + 2 * candidates + 127) / 64 * 64 + table_bytes(op.codes.bits, op.codes.parts);
}
int64_t scratch_bytes(const Scan& op) { return kMostQueries * held_bytes(op); }

template <class Layout, Lookup kLookup>
void scan_flat(const Scan& op, int64_t begin, int64_t end, void* scratch) {
  const int64_t bits = op.codes.bits, parts = op.codes.parts, size = parts << bits, each = held_bytes(op);
  const int64_t bytes = block_bytes(op.codes.bits, parts);
  const Run run = {op.codes.blocks, bytes, op.n, 0, nullptr};
  for (int64_t query = begin; query < end; query += kMostQueries) {  // equivalent: bound: behind the end are no queries
    const int64_t count = end - query < kMostQueries ? end - query : kMostQueries;
    Asker askers[kMostQueries];
    Held* held[kMostQueries];
    for (int64_t i = 0; i < count; ++i) {
      char* const at = static_cast<char*>(scratch) + i * each;
      held[i] = reinterpret_cast<Held*>(at);
      Collector& to = held[i]->to;
      to.capacity = capacity_of(op.k);
      to.found = reinterpret_cast<Candidate*>(at + sizeof(Held)), to.spare = to.found + to.capacity;
      uint8_t* const table = reinterpret_cast<uint8_t*>(at + each - table_bytes(op.codes.bits, parts));
      held[i]->table = make_table<kLookup>(op.lut + (query + i) * size, parts, 1 << bits, table, kInf);
      to.start(op.k, kLookup == Lookup::s8 ? -128 : 0, kLookup == Lookup::s8 ? 0 : 7);
      askers[i] = {&to, table, 0};
    }
    scan_each<Layout, kLookup>(run, parts, askers, (int)count, op.allowed);
    for (int64_t i = 0; i < count; ++i) {
      Collector& to = held[i]->to;
      to.settle();
      sort(to.found, to.size);
      float* const values = op.values + (query + i) * op.k;
      int64_t* const indices = op.indices + (query + i) * op.k;
      for (int64_t j = 0; j < op.k; ++j) {
        const bool there = j < to.size;
        values[j] = there ? (float)to.found[j].score / held[i]->table.scale + held[i]->table.offset : -kInf;
        indices[j] = there ? (int64_t)to.found[j].position : -1;
      }
    }
  }
}

template <class T>
void rerank_rows(const Rerank& op, const ExactScore of, int64_t begin, int64_t end, Candidate* kept) {
  for (int64_t query = begin; query < end; ++query) {
    const int64_t* const candidates = op.candidates + query * op.count;
    const auto row = [&](int64_t i) {
      return static_cast<const char*>(op.vectors.data) + candidates[i] * op.vectors.stride * (int64_t)sizeof(T);
    };
    int64_t n = 0;
    for (int64_t i = 0; i < op.count; ++i) {
      constexpr int64_t kFetch = 8;  // rows
      const int64_t ahead = least(i + kFetch, op.count - 1);
      if (candidates[ahead] >= 0) prefetch(row(ahead), op.d * (int64_t)sizeof(T));
      if (candidates[i] < 0) continue;
      kept[n++] = {ordered(of(op.queries + query * op.d, row(i), op.d)), (uint32_t)i};
    }
    n = sort_best(kept, kept + op.count, n, op.k);
    for (int64_t j = 0; j < op.k; ++j) {
      const float value = j < n ? unordered(kept[j].score) : -kInf;
      op.values[query * op.k + j] = op.l2 ? -value : value;
      op.indices[query * op.k + j] = j < n ? candidates[kept[j].position] : -1;
    }
  }
}

void rerank(const Rerank& op, int64_t begin, int64_t end, void* scratch) {
  Candidate* const kept = static_cast<Candidate*>(scratch);
  switch (op.dtype) {
    case f32:
      return rerank_rows<float>(op, exact_score_of<float>(op.l2), begin, end, kept);
    case bf16:
      return rerank_rows<BFloat16>(op, exact_score_of<BFloat16>(op.l2), begin, end, kept);
    default:
      return rerank_rows<Float16>(op, exact_score_of<Float16>(op.l2), begin, end, kept);
  }
}

}  // namespace

extern const AnnSearch search_kernels;

const AnnKernels ann = {pack,
                        {{scan_flat<Four, Lookup::s8>, scan_flat<Four, Lookup::u16>},
                         {scan_flat<Six, Lookup::s8>, scan_flat<Six, Lookup::u16>}},
                        scratch_bytes,
                        search_kernels,
                        rerank};

}  // namespace tamis::TAMIS_ISA
