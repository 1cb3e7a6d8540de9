#pragma once

#include <cstdint>
#include <memory>

#include "headkit/distributed/collective.h"
#include "headkit/distributed/walk_journal.h"

namespace headkit {

/// How the walks of this thread are shared and kept; null = not.
struct SharingState {
  std::shared_ptr<Collective> collective;
  std::shared_ptr<WalkJournal> journal;
  int64_t walks = 0;  ///< begun since the journal was opened
};

SharingState& sharing_state();

}  // namespace headkit
