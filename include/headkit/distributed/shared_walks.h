#pragma once

#include <memory>

#include "headkit/distributed/collective.h"
#include "headkit/distributed/walk_journal.h"

namespace headkit {

/// While it lives, walks over data that this thread makes are shared: each process measures its
/// part of the batches and all of them get all results, in the order of the data, as one process
/// alone would. Every process must make the same calls with the same data, batch by batch, in the
/// same order; where data, batches or order differ, and where one process fails, all of them throw.
///
/// Shared: every scorer, policy traces, mean outputs and activations, linear probes, logits of
/// layer gates, importance by input. What is not made of such walks is done by every process for
/// itself.
class SharedWalks {
 public:
  /// Throws std::invalid_argument without a collective, and where another lives on this thread.
  explicit SharedWalks(std::shared_ptr<Collective> collective);
  ~SharedWalks();
  SharedWalks(const SharedWalks&) = delete;
  SharedWalks& operator=(const SharedWalks&) = delete;
};

/// While it lives, walks over data that this thread makes keep what they measured in a journal and
/// take from it what is there. With several processes the one of rank 0 holds the journal and the
/// others none.
class JournaledWalks {
 public:
  /// Throws std::invalid_argument where another lives on this thread.
  explicit JournaledWalks(std::shared_ptr<WalkJournal> journal);
  ~JournaledWalks();
  JournaledWalks(const JournaledWalks&) = delete;
  JournaledWalks& operator=(const JournaledWalks&) = delete;
};

}  // namespace headkit
