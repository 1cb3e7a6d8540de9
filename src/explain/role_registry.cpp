#include "headkit/explain/role_registry.h"

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kVoita[] = "Voita et al. 2019";
constexpr char kClark[] = "Clark et al. 2019";
constexpr char kOurs[] = "headkit";

std::vector<RoleInfo> make_registry() {
  return {
      {.role = "positional",
       .formula = "positional.argmax/1",
       .definition = "share of rows whose largest weight lies at offset d, ties shared",
       .convention = "raw",
       .threshold = 0.9,
       .threshold_source = kVoita},
      {.role = "previous_token",
       .formula = "offset.mass/1",
       .definition = "mean weight on the token before",
       .convention = "raw",
       .threshold = 0.5,
       .threshold_source = kClark},
      {.role = "next_token",
       .formula = "offset.mass/1",
       .definition = "mean weight on the token after",
       .convention = "raw",
       .threshold = 0.5,
       .threshold_source = kClark},
      {.role = "self",
       .formula = "offset.mass/1",
       .definition = "mean weight on the token itself",
       .convention = "raw",
       .threshold = 0.5,
       .threshold_source = kClark},
      {.role = "delimiter",
       .formula = "delimiter.mass/1",
       .definition = "mean mass on the tokens of a set: CLS, SEP, punctuation",
       .convention = "raw",
       .threshold = 0.6,
       .threshold_source = kClark},
      {.role = "first_token_sink",
       .formula = "sink.mass/1",
       .definition = "mean weight on the first token, the first row left out",
       .convention = "raw",
       .threshold = 0.3,
       .threshold_source = "Gu et al. 2024 (2410.10781), 64 tokens"},
      {.role = "inactive",
       .formula = "output_norm.layer_ratio/1",
       .definition = "mean norm of what the head writes, by the mean over the heads of its layer",
       .convention = "weights",
       .threshold_source =
           "AHON-LN (2504.03889): to be set by the loss allowed on calibration data",
       .minimum_sequences = 100,
       .minimum_rows = 0,
       .low = true,
       .caution = "no null; the quantile among all heads stands in the details"},
      {.role = "broad",
       .formula = "entropy.normalised/1",
       .definition =
           "mean entropy by the logarithm of the number of keys, rows of one key left out",
       .convention = "raw",
       .threshold = 0.78,
       .threshold_source = "Clark et al. 2019: 3.8 nats at 128 tokens",
       .beats_null = false,
       .caution = "uniform attention gives 1: a high score is near the null, not beyond it"},
      {.role = "confident",
       .formula = "largest.mean/1",
       .definition = "mean largest weight of a row, the end token left out",
       .convention = "raw",
       .exclusions = "end of sequence",
       .threshold = 0.8,
       .threshold_source = kVoita},
      {.role = "duplicate_token",
       .formula = "duplicate.mass/1",
       .definition = "mean mass on earlier copies of a token, over rows that have one",
       .convention = "renormalised",
       .exclusions = "special tokens, self",
       .threshold = 0.4,
       .margin = 0.2,
       .threshold_source = kOurs,
       .minimum_rows = 300},
      {.role = "random_stripe",
       .formula = "induction.random_stripe/1",
       .definition = "induction on random sequences r r: mean weight on the token after the first "
                     "copy",
       .convention = "raw",
       .threshold = 0.4,
       .threshold_source = "common use, no standard",
       .minimum_sequences = 32,
       .minimum_rows = 640,
       .caution = "one of three scores that go by the name induction"},
      {.role = "natural_mass",
       .formula = "induction.natural_mass/1",
       .definition = "induction on the data: mean mass on the token after the latest earlier copy",
       .convention = "renormalised",
       .exclusions = "special tokens",
       .minimum_rows = 300,
       .caution = "one of three scores that go by the name induction; no threshold is known"},
      {.role = "natural_any_prior",
       .formula = "induction.natural_any_prior/1",
       .definition = "induction on the data: mean mass on the tokens after any earlier copy",
       .convention = "renormalised",
       .exclusions = "special tokens",
       .minimum_rows = 300,
       .caution = "one of three scores that go by the name induction; no threshold is known"},
      {.role = "copying",
       .formula = "ov.eigenvalues/1",
       .definition = "sum of Re l by sum of |l| over the eigenvalues of W_O W_U W_E W_V",
       .convention = "weights",
       .threshold = 0.0,
       .threshold_source = "its sign, and outside 95 % of value and output maps of unrelated heads",
       .minimum_sequences = 0,
       .minimum_rows = 0,
       .caution = "norms between the layers are left out"},
      {.role = "rare_token",
       .formula = "rare.argmax/1",
       .definition = "share of rows whose largest weight lies on the token of the sequence that is "
                     "least frequent in the data",
       .convention = "renormalised",
       .exclusions = "special tokens",
       .threshold = 0.0,
       .margin = 0.1,
       .threshold_source = "headkit; the role is of Voita et al. 2019"},
      {.role = "local",
       .formula = "distance.mean/1",
       .definition = "mean distance between query and key by the length",
       .convention = "renormalised",
       .exclusions = "special tokens",
       .low = true,
       .caution = "no threshold: to be ranked within the layer"},
      {.role = "syntactic",
       .formula = "syntactic.argmax/1",
       .definition =
           "share of dependencies u -> w whose w has the largest weight of row u, or whose "
           "row w has the largest weight of column u",
       .convention = "renormalised",
       .exclusions = "special tokens, the word itself",
       .threshold_source = "best fixed offset + 0.10 (Voita et al. 2019)",
       .minimum_rows = 200,
       .caution = "heads and relations do not match one to one (Limisiewicz et al. 2020); some "
                  "relations are tracked by the same heads across 18 languages (Ravishankar et al. "
                  "2021)"},
      {.role = "gold_alignment",
       .formula = "alignment.argmax/1",
       .definition =
           "share of tokens with a known partner whose largest weight over the candidates "
           "lies on it",
       .convention = "renormalised",
       .exclusions = "keys that are no candidates",
       .threshold = 0.0,
       .margin = 0.1,
       .threshold_source = "headkit: 0.10 over the best null",
       .minimum_rows = 200,
       .modality = "any"},
      {.role = "image_local",
       .formula = "distance.grid/1",
       .definition = "mean distance between patch and patch by the diagonal of the image",
       .convention = "renormalised",
       .exclusions = "CLS, registers",
       .threshold = 0.25,
       .threshold_source = "headkit; Raghu et al. 2021 sort by layer",
       .modality = "image",
       .low = true},
      {.role = "image_offset",
       .formula = "positional.grid/1",
       .definition = "share of patches whose largest weight lies at one step down and right",
       .convention = "renormalised",
       .exclusions = "CLS, registers",
       .threshold = 0.9,
       .threshold_source = "headkit, by analogy with Voita et al. 2019",
       .modality = "image"},
      {.role = "same_row",
       .formula = "grid.row_mass/1",
       .definition = "mean mass on the patches of the same row",
       .convention = "renormalised",
       .exclusions = "CLS, registers, the patch itself",
       .threshold = 0.0,
       .margin = 0.3,
       .threshold_source = "headkit: 0.30 over the best null",
       .modality = "image"},
      {.role = "same_column",
       .formula = "grid.column_mass/1",
       .definition = "mean mass on the patches of the same column",
       .convention = "renormalised",
       .exclusions = "CLS, registers, the patch itself",
       .threshold = 0.0,
       .margin = 0.3,
       .threshold_source = "headkit: 0.30 over the best null",
       .modality = "image"},
      {.role = "object",
       .formula = "object.overlap/1",
       .definition =
           "overlap (IoU) of the smallest set of patches with 60 % of the mass of CLS with "
           "the mask of the object",
       .convention = "renormalised",
       .exclusions = "CLS, registers",
       .threshold = 0.0,
       .margin = 0.1,
       .threshold_source = "headkit: best centred box + 0.10",
       .minimum_rows = 50,
       .modality = "image"},
      {.role = "artefact_sink",
       .formula = "sink.artefacts/1",
       .definition = "mean mass on registers and on the 1 % of patches with the largest norm",
       .convention = "raw",
       .threshold = 0.3,
       .threshold_source = "headkit",
       .modality = "image"},
      {.role = "globalness",
       .formula = "entropy.normalised/1",
       .definition = "mean entropy by the logarithm of the number of frames",
       .convention = "raw",
       .modality = "audio",
       .beats_null = false,
       .caution = "uniform attention gives 1"},
      {.role = "verticality",
       .formula = "entropy.mean_row/1",
       .definition = "1 - entropy of the mean row by the logarithm of the number of frames",
       .convention = "raw",
       .minimum_rows = 0,
       .modality = "audio",
       .caution = "a sink scores high too"},
      {.role = "diag_distance",
       .formula = "diagonal.distance/1",
       .definition = "1 - mean distance by the farthest frame of the row",
       .convention = "raw",
       .modality = "audio",
       .caution = "compare ranks with published diagonality, not values"},
      {.role = "diag_cumulative",
       .formula = "diagonal.cumulative/1",
       .definition = "mass within r of the length from the diagonal, averaged over r from 0 to 1",
       .convention = "raw",
       .modality = "audio",
       .caution = "compare ranks with published diagonality, not values"},
      {.role = "monotonicity",
       .formula = "argmax.order/1",
       .definition = "share of steps at which the largest weight does not move back",
       .convention = "raw",
       .modality = "audio",
       .caution = "a head that always looks at one frame scores 1: never a label by itself"},
      {.role = "time_alignment",
       .formula = "alignment.time_correlation/1",
       .definition = "correlation of the mean time that a token looks at with the time of its word",
       .convention = "renormalised",
       .minimum_sequences = 30,
       .minimum_rows = 300,
       .modality = "audio",
       .caution = "no threshold is known: to be ranked"},
  };
}

}  // namespace

const std::vector<RoleInfo>& role_registry() {
  static const std::vector<RoleInfo> registry = make_registry();
  return registry;
}

const RoleInfo& role_info(const std::string& role) {
  const std::vector<RoleInfo>& all = role_registry();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const RoleInfo& each) { return each.role == role; });
  if (found != all.end()) return *found;
  std::string known;
  for (const RoleInfo& each : all) known += (known.empty() ? "" : ", ") + each.role;
  throw std::invalid_argument(error_message("roles", "a role of " + known, "'", role, "'"));
}

const std::vector<std::string>& role_warnings() {
  static const std::vector<std::string> warnings{
      "A role is a description (level L0): it says what a head looks at, not what the model makes "
      "of it.",
      "Interpreted importance is a weak guide to prunability, random pruning can do as well "
      "(Budhraja et al. 2020).",
      "Good subnetworks vary with the seed, and attention patterns do not explain them (Prasanna "
      "et al. 2020).",
  };
  return warnings;
}

}  // namespace headkit
