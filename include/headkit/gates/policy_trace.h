#pragma once

#include <string>
#include <vector>

#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/output_loss.h"

namespace headkit {

/// Settings of `trace_policy`.
struct TraceOptions {
  /// Lambdas to run, ascending, the last one 1; fixed before any loss was seen. Empty = 0, 1/16,
  /// .., 1.
  std::vector<double> grid{};
  /// int64 entry [B] of each batch that says which task an example is of; not shown to the model.
  /// Empty = one task.
  std::string task_field{};
  Progress progress{};  ///< batches done
};

/// What a policy loses and costs over its knob: the whole model, run at each lambda, for each
/// example. Enough for any calibration, and for any split of the examples, without running again.
struct PolicyTrace {
  std::vector<double> grid;
  at::Tensor losses;     ///< double [N, grid]; 0 at the last value
  at::Tensor heads_run;  ///< double [N, grid]
  at::Tensor flops;      ///< double [N, grid] (run_flops)
  at::Tensor drift;      ///< double [N]: loss at lambda 1 against the model with nothing closed
  at::Tensor tokens;     ///< int64 [N]
  at::Tensor task;       ///< int64 [N]; zeros where there is one
  std::string loss;      ///< name of the loss
  double bound = 1;      ///< of it
  std::string model;     ///< identities, as below
  std::string policy;
  std::string data;

  /// The same of these examples; `index`: int64 [n].
  PolicyTrace select(const at::Tensor& index) const;
};

/// Runs the policy over `data` at every lambda of the grid. Full = the run at lambda 1. Cost: as
/// many forwards as the grid has values (what a policy's sweep shares, less) and one for the drift.
PolicyTrace trace_policy(GatedModel& model, const AdjustablePolicy& policy, const DataSource& data,
                         const OutputLoss& loss, const TraceOptions& options = {});

/// Identity of a policy whatever its lambda: SHA-256 of its JSON at lambda 1/2.
std::string policy_fingerprint(const AdjustablePolicy& policy);
/// Identity of data: SHA-256 over names, dtypes, shapes and bytes of its batches in their order.
std::string data_fingerprint(const DataSource& data);
/// Valid tokens of the examples of a batch, as the model sees them: int64 [B].
at::Tensor batch_tokens(GatedModel& model, const Batch& batch);

/// The grid that an empty one stands for; else `grid`, after a check that it ascends to 1.
std::vector<double> checked_grid(const char* operation, std::vector<double> grid);

}  // namespace headkit
