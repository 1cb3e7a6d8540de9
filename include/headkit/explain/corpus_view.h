#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "headkit/core/head_layout.h"
#include "headkit/explain/decision_record.h"

namespace headkit {

/// How one head goes with one property of the inputs.
struct CorpusCorrelation {
  std::string property;
  std::optional<double> spearman, lower, upper;  ///< null where head or property never varies
};

/// One head over a data set.
struct CorpusHead {
  HeadId head;
  double frequency = 0;         ///< share of the inputs that run it
  double lower = 0, upper = 0;  ///< Wilson interval of the share
  std::string state;            ///< "on", "off", "always_on", "pruned", "collapsed" or "mixed"
  std::optional<double> mean_margin;            ///< over inputs with one
  std::optional<double> margin_spread;          ///< standard deviation
  std::vector<CorpusCorrelation> correlations;  ///< of running with each property
  std::map<std::string, double> by_class;       ///< frequency within each class
};

/// What a policy selects over a data set: how often each head runs, and for what kind of input.
struct CorpusReport {
  int64_t inputs = 0;
  HeadLayout layout;
  std::string policy;
  double confidence = 0.95;
  std::vector<CorpusHead> heads;        ///< by layer, then head
  std::map<int64_t, int64_t> selected;  ///< heads that run -> inputs
  double mean_selected = 0, selected_spread = 0;
  std::vector<CorpusCorrelation> selected_correlations;  ///< of the number of heads
  std::map<std::string, int64_t> classes;                ///< inputs of each
  std::map<std::string, double> selected_by_class;       ///< mean number of heads
  /// Nogueira's index over inputs: 1 = the same heads for every input (a static policy), about 0 =
  /// as if drawn for each. Null where all or no heads run throughout.
  std::optional<double> same_for_all;
  /// Spearman correlation of the frequencies in two halves of the inputs (every other one): how far
  /// the ranking of heads would come out again. Null where it is undefined.
  std::optional<double> split_half;

  std::string to_json() const;
};

/// Collects decision records of a data set, in one pass; N inputs take N times (heads / 8 bytes +
/// properties).
class CorpusView {
 public:
  /// `properties` name what is known of every input beside its record, for example confidence,
  /// complexity; "length" (valid tokens) is always there.
  explicit CorpusView(std::vector<std::string> properties = {});
  /// `values`: one of each property, finite. `label`: class of the input; empty = none. Throws
  /// std::invalid_argument for a record of another model, and values that do not fit.
  void add(const DecisionRecord& record, const std::vector<double>& values = {},
           const std::string& label = {});
  int64_t inputs() const { return static_cast<int64_t>(selected_.size()); }
  /// Throws std::invalid_argument for fewer than two inputs.
  CorpusReport report(double confidence = 0.95) const;

 private:
  std::vector<std::string> properties_;
  HeadLayout layout_;
  std::string policy_;
  std::vector<std::vector<bool>> open_;    // by head, by input
  std::vector<std::string> state_;         // by head
  std::vector<double> margins_, squares_;  // Welford's mean and sum of squares, by head
  std::vector<int64_t> margin_counts_;
  std::vector<std::vector<double>> values_;  // by property, by input
  std::vector<double> selected_;
  std::vector<std::string> labels_;
};

}  // namespace headkit
