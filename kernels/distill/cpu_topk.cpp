// Losses against K entries of a row: a teacher stored as its top-k logits, or a sparse soft target. Compiled once per
// ISA.
//   loss = weight * (alpha * tau^2 * D + (1 - alpha) * CE(s, target)), D over the K entries' classes and, as one class,
//   all others, the tail: u_tail = tau * logsumexp(s_i / tau), i not among the K.
//   D's gradient g over the K + 1 is the gradient of its members; class i of the tail gets
//   g_tail * exp(s_i / tau) / exp(u_tail / tau).
// A teacher renormalised over its K, and a sparse soft target, are the same with nothing in the teacher's tail.
// Floor: the logits read once and the gradient written once, 8 bytes a class in float32, 16 an entry; one exponential a
// class (one more where a target counts and tau != 1).
//
// The tail is summed without its members, never as 1 minus theirs: their exponentials are taken out of what is kept,
// and only the blocks that held one are added up again. Where the tail vanishes beside them it is read once more,
// relative to its own maximum. The K + 1 go to the dense kernel as a row of its own.
#include "walk.h"

namespace tamis::TAMIS_ISA {

int64_t topk_scratch_bytes(int64_t classes, int64_t entries) {
  return scratch_bytes(classes) + scratch_bytes(entries + 1) + 8 * 5 * padded(entries + 1);
}

namespace {

// Below this a sum relative to the row's maximum has lost terms: floats end at 1e-38.
constexpr double kFaint = 1e-24;

template <class S>
class Entries : Walk<S> {
  using R = Real<S>;
  using W = Walk<S>;
  using V = Vector<R>;
  using W::a_, W::b_, W::buffers_, W::classes_, W::f_s_, W::h_, W::op_, W::parts_, W::pending_;

 public:
  Entries(const TopkLoss& op, void* scratch)
      : W(op.loss, form(R(), kAlone, op.loss.hard, true), op.loss.hard ? kPair : kStudent, scratch),
        topk_(op),
        f_t_(transform<R>(op.loss.teacher_transform)),
        reduced_(op.entries + (op.entries < classes_)) {
    if (op_.hard) b_ = h_;  // the second of the pair
    const int64_t kept = padded(op.entries + 1);
    logits_ = reinterpret_cast<R*>(static_cast<char*>(scratch) + scratch_bytes(classes_));
    taken_ = logits_ + kept, u_ = taken_ + kept, v_ = u_ + kept, g_ = v_ + kept;
    rest_ = g_ + kept;
  }

  void rows(int64_t begin, int64_t end) {
    W::rows(begin, end, [this](int64_t r, const Row<R>& row) { read(r, row); });
  }

 private:
  struct Tail {
    R sum;    // of its a
    R faded;  // what the row's a are beside these
    R logit;  // u_tail, relative to the row's shift
  };

  void read(int64_t r, const Row<R>& row) {
    const R inverse_tau = 1 / row.tau;
    R mean, apart = 0;
    const Online<R> o = W::sums(r, row, {}, inverse_tau, mean);
    const R hard_sum = op_.hard ? o.sums.hard : o.sums.student, shift = shift_of(o.top.student);
    W::move(o.top, inverse_tau);
    const int64_t* const index = topk_.indices + r * topk_.entries;
    const bool sound = row.soft == 0 || take(index);
    Tail tail{1, 1, 0};
    if (row.soft != 0 && sound) {
      gather(r, index, shift);
      tail = others(r, row.tau, inverse_tau, shift);
      u_[topk_.entries] = tail.logit;
      teacher(r, row.tau);
      apart = compare(row.tau);
    }
    R loss = sound ? row.soft * apart : R(__builtin_nanf(""));
    if (row.hard != 0) loss += row.hard * cross_entropy(op_, hard_sum, shift, W::target_logit(r, row.target), mean);
    static_cast<R*>(op_.loss)[r] = row.weight * loss;
    if (!op_.gradient.data) return;
    pending_ = {r, 0, slope_of_target(op_, row, hard_sum, R(op_.gradient_scale)), 0, nullptr, nullptr};
    Factors<R>& f = pending_.slope.factors;
    f.student = op_.hard ? R(0) : f.hard * tail.faded, f.teacher = -f.hard;
    if (!sound) f.student = loss;
    if (row.soft == 0 || !sound) return;
    const R soft = row.weight * R(op_.gradient_scale) * row.soft;
    if (tail.sum != 0) f.student += soft * g_[topk_.entries] / tail.sum;
    members(index, soft);
  }

  // The members' exponentials into taken_, and -1 into a_; false where an index is no class or comes twice.
  bool take(const int64_t* index) {
    for (int64_t k = 0; k < topk_.entries; ++k) {
      const int64_t c = index[k];
      if (c < 0 || c >= classes_ || a_[c] < 0) return false;
      taken_[k] = a_[c], a_[c] = -1;
      parts_[c / kBlock].student = -1;
    }
    return true;
  }

  // The members' logits, transformed, and u_ relative to shift.
  void gather(int64_t r, const int64_t* index, R shift) {
    const S* const s = W::student(r);
    for (int64_t k = 0; k < topk_.entries; ++k) logits_[k] = load_tail(s + index[k], 1)[0];
    for (int64_t k = 0; k < topk_.entries; k += kLanes<V>) {  // equivalent: bound: one vector more is padding still
      const V x = f_s_(load(logits_ + k));
      store(logits_ + k, x);
      store(u_ + k, x - shift);
    }
  }

  // The tail, once the members are taken out.
  Tail others(int64_t r, R tau, R inverse_tau, R shift) {
    const Tail none = {0, 1, -kInf};
    if (topk_.entries == classes_) return none;
    R total = 0;
    for (int64_t c = 0; c < classes_; c += kBlock) {
      const R part = parts_[c / kBlock].student;
      total += part < 0 ? sum_of_others(a_ + c, block_size(classes_, c)) : part;
    }
    if (!(total < R(kFaint))) return {total, 1, tau * log(total)};
    R top = -kInf;
    for (int64_t c = 0; c < classes_; c += kBlock) {
      const R block = maximum(others_of(r, c), block_size(classes_, c));
      top = block > top ? block : top;
    }
    if (top == -kInf) return none;
    total = 0;
    for (int64_t c = 0; c < classes_; c += kBlock) {
      const R* const s = others_of(r, c);
      const int64_t n = block_size(classes_, c);
      V sum{};
      for (int64_t i = 0; i < n; i += kLanes<V>) {
        const V a = exp_nonpositive(load_upto(s + i, upto(n - i, kLanes<V>)) - top, inverse_tau);
        store(a_ + c + i, a);
        sum += a;
      }
      total += reduce_add(sum);
    }
    return {total, exp((top - shift) * inverse_tau), top - shift + tau * log(total)};
  }

  static R sum_of_others(const R* a, int64_t n) {  // behind the last class a is 0, up to a whole vector
    V sum{};
    for (int64_t i = 0; i < n; i += kLanes<V>) sum += max(V{}, load(a + i));
    return reduce_add(sum);
  }

  // A block's logits, the members' -inf.
  const R* others_of(int64_t r, int64_t c) {
    const int64_t n = block_size(classes_, c);
    const R* const s = numbers(W::student(r) + c, n, f_s_, buffers_);
    for (int64_t i = 0; i < n; ++i) buffers_[i] = a_[c + i] < 0 ? R(-kInf) : s[i];
    return buffers_;
  }

  // v_: what the K + 1 have of the teacher. 1 minus the members' probability is taken in double: little may be left.
  void teacher(int64_t r, R tau) {
    const int64_t entries = topk_.entries;
    const R* const values = static_cast<const R*>(topk_.values) + r * entries;
    const R* const t = numbers(values, entries, f_t_, v_);
    v_[entries] = op_.divergence == kSoftTarget ? R(0) : R(-kInf);
    if (!topk_.logsumexp) {
      if (t != v_) memcpy(v_, t, entries * sizeof(R));
      return;
    }
    const double logsumexp = static_cast<const R*>(topk_.logsumexp)[r], hot = tau;
    double mass = 0;
    for (int64_t k = 0; k < entries; ++k) {
      const double log_q = t[k] / hot - logsumexp;
      mass += ::exp(log_q);
      v_[k] = hot * log_q;
    }
    if (mass < 1) v_[entries] = hot * ::log1p(-mass);
  }

  // tau^2 D of u_ and v_, and its gradient into g_.
  R compare(R tau) {
    const R one = 1;
    R result;
    DistillLoss dense{};
    dense.classes = reduced_;
    dense.student = {u_, reduced_, reduced_, 1, 0}, dense.teacher = {v_, reduced_, reduced_, 1, 0};
    dense.student_transform = dense.teacher_transform = {1, 0};
    dense.temperature = &tau, dense.alpha = &one;
    dense.divergence = op_.divergence, dense.beta = op_.beta;
    dense.loss = &result;
    if (op_.gradient.data) dense.gradient = {g_, reduced_, reduced_, 1, 0};
    dense.gradient_scale = 1;
    constexpr Dtype real = __is_same(R, double) ? f64 : f32;
    loss_kernels[real][real](dense, 0, 1, rest_);
    return result;
  }

  // The members' whole gradient into g_, for the pending row.
  void members(const int64_t* index, R soft) {
    const Slope<R>& slope = pending_.slope;
    const Factors<R>& f = slope.factors;
    for (int64_t k = 0; k < topk_.entries; ++k) {
      g_[k] = soft * g_[k] + f.hard * (op_.hard ? h_[index[k]] : taken_[k]) - f.uniform;
      if (index[k] == slope.target) g_[k] -= slope.label;
    }
    if (!f_s_.identity())
      for (int64_t k = 0; k < topk_.entries; k += kLanes<V>)  // equivalent: bound: likewise
        store(g_ + k, load(g_ + k) * f_s_.slope(load(logits_ + k)));
    pending_.members = topk_.entries, pending_.index = index, pending_.value = g_;
  }

  const TopkLoss& topk_;
  const Transform<R> f_t_;
  const int64_t reduced_;              // classes: the entries, and the tail where there is one
  R *logits_, *taken_, *u_, *v_, *g_;  // [entries + 1, padded]
  void* rest_;                         // the dense kernel's scratch
};

template <class S>
void topk_loss(const TopkLoss& op, int64_t begin, int64_t end, void* scratch) {
  Entries<S>(op, scratch).rows(begin, end);
}

}  // namespace

const TopkKernel topk_kernels[kDtypes] = {topk_loss<float>, topk_loss<double>, topk_loss<Float16>, topk_loss<BFloat16>};

}  // namespace tamis::TAMIS_ISA
