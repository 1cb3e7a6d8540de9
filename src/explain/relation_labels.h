#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace headkit {

/// Numbers of the names that relations are counted under.
class RelationLabels {
 public:
  /// The numbers of a relation: its own and, if it has a subtype, that of the name before the
  /// colon. Unknown names get the next number.
  std::vector<int64_t> of(const std::string& relation);
  const std::vector<std::string>& names() const { return names_; }
  int64_t count() const { return static_cast<int64_t>(names_.size()); }

 private:
  int64_t number_of(const std::string& name);

  std::vector<std::string> names_;
  std::map<std::string, int64_t> numbers_;
};

/// Where arcs of one label point, and the distance that most of them have.
class OffsetCounts {
 public:
  void add(int64_t offset);
  int64_t arcs() const { return arcs_; }
  int64_t best() const;
  double share(int64_t offset) const;  ///< NaN without arcs

 private:
  std::map<int64_t, int64_t> counts_;
  int64_t arcs_ = 0;
};

}  // namespace headkit
