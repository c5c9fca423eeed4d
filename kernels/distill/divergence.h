// The divergences, in the order of pysrc/tamis/distill/reference.py.
#pragma once

namespace tamis {

enum Divergence {
  kForwardKl,
  kReverseKl,
  kJsd,
  kTotalVariation,
  kLogitMse,
  kDivergences,
  kAlone = kDivergences,
  kSoftTarget  // cross-entropy with the teacher's "logits", which are probabilities as they are
};

}  // namespace tamis
