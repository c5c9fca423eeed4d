// The loss of logits that come some classes at a time, for all rows, and their gradient when they come again: what a
// linear layer of many classes needs so as not to hold its logits. Compiled once per ISA.
// Floor a stage: both tiles read; two exponentials a class; in kGradient one tile written. A tile should fit the caches
// it was just computed in. What a divergence does is in cpu_form.cpp, what a row asks for in walk.h.
#include "walk.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class R>
struct State {
  Online<R> online;
  Compared<R> compared;
  R at_target, origin, total;  // the target's logit; sum of s - origin
};

template <class S>
class Tile {
  using R = Real<S>;
  static_assert(sizeof(State<R>) == kTileState * sizeof(R));

 public:
  Tile(const DistillTile& tile, const Source<R>& teacher, R* scratch)
      : tile_(tile),
        op_(tile.op),
        teacher_(teacher),
        form_(form(R(), op_.divergence, op_.hard, tile.stage != kSum)),
        f_s_(transform<R>(op_.student_transform)),
        buffers_(scratch),
        a_(scratch + 2 * kBlock),
        b_(a_ + padded(block_size(op_.student.classes, 0))),
        h_(b_ + (b_ - a_)) {}

  void rows(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Row<R> row = row_at<R>(op_, r);
      R* const loss = static_cast<R*>(op_.loss) + r;
      if (row.state == Row<R>::kLive) {
        State<R>& state = static_cast<State<R>*>(tile_.state)[r];
        if (tile_.stage == kGradient) {
          differentiate(r, row, state);
          continue;
        }
        tile_.stage == kSum ? add(r, row, state) : compare(r, row, state);
        *loss = outcome_of(row, state, 0).loss;
      } else {
        *loss = row.state == Row<R>::kBad ? __builtin_nanf("") : 0.0f;
        if (tile_.stage == kGradient) fill(student(r), op_.student.classes, *loss);
      }
    }
  }

 private:
  S* student(int64_t r) const { return const_cast<S*>(row_of<S>(op_.student, r)); }

  template <class Step>
  void blocks(int64_t r, const Row<R>& row, const Step& step) const {
    const Beside<R> t = beside<S>(op_, r, row, teacher_);
    const R inverse_tau = op_.divergence == kAlone ? R(1) : 1 / row.tau;
    for (int64_t c = 0; c < op_.student.classes; c += kBlock) {
      const int64_t n = block_size(op_.student.classes, c);
      Read<R> block = block_of(student(r), f_s_, t, c, n, inverse_tau, buffers_);
      block.a = a_, block.b = b_, block.h = h_;
      step(c, block);
    }
  }

  void add(int64_t r, const Row<R>& row, State<R>& state) const {
    if (tile_.first == 0) state = {};
    blocks(r, row, [&](int64_t c, const Read<R>& block) {
      R in_block;
      const Tops<R> tops = add_block(form_, block, state.online, in_block);
      const int64_t target = row.target - tile_.first - c;
      if (0 <= target && target < block.n) state.at_target = block.s[target];
      if (row.hard == 0 || op_.label_smoothing == 0) return;
      if (tile_.first == 0 && c == 0) state.origin = shift_of(tops.student);
      state.total += sum(block.s, block.n, state.origin);
    });
  }

  // Exponentials relative to the whole row's tops.
  Compared<R> compared(Read<R> block, const Row<R>& row, const Online<R>& online) const {
    block.shift_s = shift_of(online.top.student), block.shift_t = shift_of(online.top.teacher);
    form_.careful(block);
    return form_.compare && row.soft != 0 ? form_.compare(online.sums, op_.beta, a_, b_, block.n) : Compared<R>{};
  }

  void compare(int64_t r, const Row<R>& row, State<R>& state) const {
    if (tile_.first == 0) state.compared = {};
    blocks(r, row, [&](int64_t, const Read<R>& block) {
      const Compared<R> x = compared(block, row, state.online);
      state.compared = {state.compared.slope + x.slope, state.compared.beside + x.beside};
    });
  }

  void differentiate(int64_t r, const Row<R>& row, const State<R>& state) const {
    const R grad = static_cast<const R*>(tile_.grad)[r * tile_.grad_step];
    const Outcome<R> x = outcome_of(row, state, R(op_.gradient_scale) * grad);
    blocks(r, row, [&](int64_t c, const Read<R>& block) {
      compared(block, row, state.online);
      S* const s = student(r) + c;
      write_gradient(s, s, block.n, a_, b_, h_, terms_of(op_), x.slope, tile_.first + c, f_s_, false);
    });
  }

  Outcome<R> outcome_of(const Row<R>& row, const State<R>& state, R gradient_scale) const {
    return outcome(op_, row, form_, state.online, state.compared, state.at_target,
                   state.origin + state.total / op_.classes, gradient_scale);
  }

  const DistillTile& tile_;
  const DistillLoss& op_;
  const Source<R>& teacher_;
  const Form<R>& form_;
  const Transform<R> f_s_;
  R* const buffers_;                  // [2 * kBlock]
  R *const a_, *const b_, *const h_;  // [a block, padded]
};

template <class S, class T>
void distill_tile(const DistillTile& tile, int64_t begin, int64_t end, void* scratch) {
  Tile<S>(tile, kSource<T>, static_cast<Real<S>*>(scratch)).rows(begin, end);
}

}  // namespace

const TileKernel tile_kernels[kDtypes][kDtypes] = {
    {distill_tile<float, float>, nullptr, distill_tile<float, Float16>, distill_tile<float, BFloat16>},
    {nullptr, distill_tile<double, double>, nullptr, nullptr},
    {distill_tile<Float16, float>, nullptr, distill_tile<Float16, Float16>, distill_tile<Float16, BFloat16>},
    {distill_tile<BFloat16, float>, nullptr, distill_tile<BFloat16, Float16>, distill_tile<BFloat16, BFloat16>},
};

}  // namespace tamis::TAMIS_ISA
