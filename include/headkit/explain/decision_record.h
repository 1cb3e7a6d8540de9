#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/core/head_layout.h"
#include "headkit/explain/details.h"

namespace headkit {

struct HeadExplanation;
struct RecordDetails;

/// Version of the JSON schema of decision records (docs/reference/decision_record.schema.json). A
/// reader refuses a newer major number, takes older ones, and keeps fields it does not know.
inline constexpr const char* kRecordSchema = "2.0";

/// One addend of a gate logit.
struct LogitPart {
  int64_t token = 0;  ///< position in the input; -1 where `feature` is set
  double value = 0;
  std::string feature = {};  ///< name of a scalar that is of no token; empty = a token
  bool operator==(const LogitPart&) const = default;
};

/// What was decided for one head, and why. Unset members are null in JSON.
struct HeadDecision {
  int64_t layer = 0;
  int64_t head = 0;
  /// "on", "off": decided for this input; "always_on", "pruned": the same for every input;
  /// "collapsed": replaced by one shared attention row.
  std::string state;
  double gate = 0;
  std::string reason;  ///< score, floor, fixed, mask, removed, confidence
  std::optional<double> logit;
  std::optional<double> threshold;
  std::optional<double> margin;             ///< logit - threshold
  std::optional<double> base;               ///< what the logit is for the reference input
  std::vector<LogitPart> parts;             ///< largest magnitude first
  std::optional<double> rest;               ///< sum of the parts that are not listed
  std::optional<double> residual;           ///< logit - (base + parts + rest): rounding
  Details<HeadExplanation> explained = {};  ///< head_explanation.h; missing in plain runs
  bool operator==(const HeadDecision&) const = default;
};

/// What a policy decided for one input: one JSON object, one line.
///
/// Fields of the schema that are not known are null or left out, and named in `not_computed` with a
/// reason. Plain runs leave the wide parts out; `explain_decisions` fills them.
struct DecisionRecord {
  std::string library_version;  ///< headkit's
  HeadLayout layout;            ///< of the original model; sizes that are not known are 0
  std::string weights_sha256;   ///< empty = not computed
  int64_t input = 0;            ///< number of the example
  int64_t tokens = 0;           ///< valid tokens
  std::string policy;           ///< registry name
  std::string calibration;      ///< what set the threshold; empty = unknown
  std::string mode;             ///< static, dynamic, escalated
  std::string reference;        ///< what the parts of a logit are measured against; empty = none
  std::optional<double> confidence;  ///< of a ladder: what the last decision looked at
  std::string signal;                ///< what the confidence is; empty = none
  std::optional<int64_t> rung;       ///< of a ladder: where the input ended; lowest 0
  std::optional<int64_t> rungs;      ///< of a ladder: how many there are
  std::optional<int64_t>
      decided_at;                    ///< layer before which the rung was decided; null = the output
  std::optional<double> threshold;   ///< of the policy
  std::optional<double> risk_bound;  ///< promised mean loss, where calibrated so
  std::optional<double> lambda;      ///< where the policy's knob stood
  std::optional<bool> budget_unmet;  ///< whether the promise kept a budget from being met
  std::string request_id;            ///< of whoever asked; empty = unknown
  std::optional<double> ood_score;   ///< distance of the input from the calibration inputs
  std::optional<double> audit_loss;  ///< against the full run, where the input was audited
  int64_t heads_run = 0;             ///< heads computed, re-runs included
  std::optional<double> flops_run;   ///< of the whole encoder, re-runs included
  std::optional<double> flops_dense;
  std::vector<HeadDecision> heads;  ///< all heads, by layer, then head
  int64_t block_count = 0;          ///< blocks of 32 neurons in a layer; 0 = not gated, all open
  std::vector<std::vector<int64_t>> open_blocks;  ///< ascending, for each layer; empty if not gated
  Details<RecordDetails> details = {};            ///< record_details.h; missing in plain runs
  std::string unknown;                            ///< JSON object of fields the reader did not know

  int64_t active() const;  ///< heads with a gate other than 0
  /// Gates [L, H], float32: running the input under them gives the output again.
  at::Tensor gates() const;
  /// Gates of blocks of neurons [L, N], float32; undefined = all open.
  at::Tensor block_gates() const;

  /// One line of JSON. Throws std::invalid_argument on NaN, infinity, an unknown state or heads
  /// that do not cover the layout.
  std::string to_json() const;
  static DecisionRecord from_json(const std::string& text);
  /// The same record with the members of a JSON object put in their places: objects are merged,
  /// `heads` by layer and head, everything else replaced. Throws std::invalid_argument if that is
  /// no record.
  DecisionRecord with(const std::string& patch) const;
  bool operator==(const DecisionRecord&) const = default;
};

/// The records of JSON lines; blank lines are skipped. std::invalid_argument names a bad line.
std::vector<DecisionRecord> read_decision_records(const std::string& lines);
/// A line of JSON for each of them.
std::string write_decision_records(const std::vector<DecisionRecord>& records);

}  // namespace headkit
