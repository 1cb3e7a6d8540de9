#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace headkit {

/// Importance of every head; larger = more important. What produced it travels with it.
struct HeadScores {
  at::Tensor values;  ///< double, CPU, [layers, heads]
  at::Tensor lower;   ///< lower end of the interval for `values`, same shape; undefined = unknown
  at::Tensor upper;   ///< upper end
  double confidence = 0.95;  ///< level of the interval
  std::string metric;        ///< registry name, for example "gate_gradient"
  std::string objective;     ///< name of the loss that was differentiated or evaluated
  std::string settings;      ///< JSON object: granularity, normalisation, batch size ...
  int64_t samples = 0;       ///< examples seen
  uint64_t seed = 0;         ///< of whatever was random

  /// Throws std::invalid_argument unless `values` is a finite [layers, heads] double tensor and the
  /// interval, where known, has its shape.
  void check(const char* operation) const;
  std::string to_json() const;
  static HeadScores from_json(const std::string& text);
};

}  // namespace headkit
