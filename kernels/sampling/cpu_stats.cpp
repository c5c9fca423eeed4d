// softmax_stats: everything that one read of the logits tells about a row's uncertainty. Floor: 4 bytes and one
// exponential a float32 class. A block that holds no new maximum is swept once: its exponentials, sums and two largest
// together, the next block prefetched meanwhile; one that does, which becomes rare as a row goes on, once more.
#include "sweep.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class R>
int64_t first_nan(const Reader<R>& row, int64_t classes) {
  for (int64_t c = 0; c < classes; c += kBlock) {
    const int64_t n = block_size(classes, c), at = first_nan(row.read(c, n), n);
    if (at >= 0) return c + at;
  }
  return -1;
}

template <class R>
void write(const SoftmaxStats& op, int64_t r, const Reader<R>& row, const Online<R>& sums, R inverse_tau) {
  const R z = sums.total(), log_z = sums.log_total();
  const R nan = kInf - kInf, sound = sums.max > -kInf && sums.max < kInf ? R(0) : nan;  // added to every number
  const auto put = [&](void* out, R value) { static_cast<R*>(out)[r] = value + sound; };
  put(op.max_prob, 1 / z);
  put(op.entropy, log_z - sums.energy * inverse_tau / z);
  put(op.margin, -expm1((sums.second - sums.max) * inverse_tau) / z);
  const int64_t nan_at = z == z ? -1 : first_nan(row, op.in.logits.classes);
  op.argmax[r] = nan_at < 0 ? sums.argmax : nan_at;  // as torch's, which counts NaN as the largest
  // Infinite where the maximum is; several +inf are no NaN.
  static_cast<R*>(op.logsumexp)[r] = sums.max * inverse_tau + (z != z && nan_at < 0 ? R(0) : log_z);
  if (!op.in.target) return;
  const int64_t y = op.in.target[r];
  if (y < 0 || y >= op.in.logits.classes) {
    put(op.nll, nan), put(op.el2n, nan);
    return;
  }
  const R below = (sums.max - row.at(y)) * inverse_tau, e = exp(-below);
  const bool top = y == sums.argmax;
  // Off the maximum, no more than half of either sum is taken away.
  const double miss = top ? sums.others : 1 + sums.others - e, squares = double(sums.squares) / kSquare<R>;
  const double rest = top ? squares : 1 + squares - double(e) * e;
  put(op.nll, below + log_z);
  put(op.el2n, R(::sqrt(miss * miss + (rest < 0 ? 0 : rest)) / z));
}

template <Wanted kWanted, class R>
void rows(const SoftmaxStats& op, const Source<R>& source, int64_t begin, int64_t end, R* buffer) {
  const int64_t classes = op.in.logits.classes;
  const Transform<R> f = transform<R>(op.in.transform);
  for (int64_t r = begin; r < end; ++r) {
    const Reader<R> row = reader(op.in, source, f, r, buffer);
    const R inverse_tau = inverse_tau_of<R>(op.in, r);
    Online<R> sums;
    for (int64_t c = 0; c < classes; c += kBlock)
      sums.template add<kWanted>(row.block(c, block_size(classes, c)), c, inverse_tau);
    write(op, r, row, sums, inverse_tau);
  }
}

template <class T, Dtype kDtype, class R = Real<T>>
void softmax_stats(const SoftmaxStats& op, int64_t begin, int64_t end, void* scratch) {
  if (op.in.logits.classes <= kFew) return few_kernels[kDtype](op, begin, end, scratch);
  (op.in.target ? rows<kSquares, R> : rows<kEnergy, R>)(op, kSource<T>, begin, end, static_cast<R*>(scratch));
}

const RowKernel<SoftmaxStats> stats_kernels[kDtypes] = {softmax_stats<float, f32>, softmax_stats<double, f64>,
                                                        softmax_stats<Float16, f16>, softmax_stats<BFloat16, bf16>};

// Two blocks, two rows of exponentials, a number a block of each, all as wide as a double. Few classes: a block, and as
// many rows as lanes.
int64_t scratch_bytes(int64_t classes) {
  const int64_t blocks = classes / kBlock + 1;
  const int64_t few = classes <= kFew ? kBlock + classes * kLanes<F32> : 0;
  const int64_t many = 2 * kBlock + 2 * blocks * kBlock + 2 * blocks;
  return 8 * (few > many ? few : many);
}

}  // namespace

const SamplingKernels sampling = {stats_kernels, backward_kernels, disagreement_kernels, scratch_bytes, draw_kernels};

}  // namespace tamis::TAMIS_ISA
