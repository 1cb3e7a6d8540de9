#include "headkit/distributed/shared_walks.h"

#include "distributed/sharing_state.h"
#include "headkit/core/error.h"

namespace headkit {

SharingState& sharing_state() {
  thread_local SharingState state;
  return state;
}

SharedWalks::SharedWalks(std::shared_ptr<Collective> collective) {
  HEADKIT_CHECK(collective != nullptr, "distributed", "a collective", "none");
  HEADKIT_CHECK(sharing_state().collective == nullptr, "distributed",
                "one sharing of walks at a time", "a second one inside");
  sharing_state().collective = std::move(collective);
}

SharedWalks::~SharedWalks() { sharing_state().collective.reset(); }

JournaledWalks::JournaledWalks(std::shared_ptr<WalkJournal> journal) {
  HEADKIT_CHECK(journal != nullptr, "journal", "a journal", "none");
  HEADKIT_CHECK(sharing_state().journal == nullptr, "journal", "one journal at a time",
                "a second one inside");
  sharing_state().journal = std::move(journal);
  sharing_state().walks = 0;
}

JournaledWalks::~JournaledWalks() { sharing_state().journal.reset(); }

}  // namespace headkit
