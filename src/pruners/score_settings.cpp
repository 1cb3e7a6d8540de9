#include "pruners/score_settings.h"

namespace headkit {

void read_score_settings(MethodSettings& settings, ScoreOptions& score) {
  settings.read("granularity", score.granularity, "of gate gradients, as for score");
  settings.read("normalization", score.normalization, "none, layer_l2 or minmax");
  settings.read("denominator", score.denominator, "of gate gradients, as for score");
  settings.read("seed", score.seed, "of what is random in the metric");
}

}  // namespace headkit
