// N games stepped in one call: noise, frame skip, observations, ends, auto-reset, snapshots.
//
// The contract is mario/game/batch/contract.py; each step does event by event what
// mario/game/batch/oracle.py does. An episode depends on its spec and the actions only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "console.hpp"
#include "game.hpp"
#include "observation.hpp"
#include "random.hpp"
#include "thread_pool.hpp"

namespace nes {

enum class EndReason : std::int8_t { kRunning = 0, kFlag, kDeath, kTimeOut, kTruncated };

// Every value is given by the caller; mario.config.game.GameConfig has the defaults.
struct BatchSettings {
  std::vector<Byte> buttons;  // of each action
  int frame_skip = 1;
  bool max_pool = false;
  std::int64_t no_op_max_frames = 0;
  double sticky_probability = 0.0;
  std::int32_t max_steps = 1;
  std::int32_t stuck_limit_steps = 0;  // 0: never
  int threads = 1;
};

// Everything but the actions that an episode depends on.
struct Episode {
  LevelIndex level = 0;
  std::uint64_t seed = 0;
  std::shared_ptr<const Console::Snapshot> state;  // null: the level's start
};

// The caller's arrays for the results of a step, one row per slot.
struct BatchRows {
  GameState* before = nullptr;
  GameState* after = nullptr;
  std::int32_t* furthest_x_px = nullptr;
  std::int8_t* end = nullptr;
  std::int32_t* steps = nullptr;
  std::int32_t* frames = nullptr;
  std::int32_t* game_reward = nullptr;
  Byte* terminal_observations = nullptr;
  bool* active = nullptr;
};

// A thread's two screens to draw into, for max-pooling.
struct Scratch {
  std::array<std::array<Byte, kScreenPixels>, 2> screens;
};

// One game and the counters of its episode.
class Slot {
 public:
  Slot(std::shared_ptr<const Cartridge> cartridge, const BatchSettings& settings)
      : settings_(settings), console_(std::move(cartridge)), game_(console_) {}

  bool active() const { return active_; }
  // The game got stuck: the slot is idle until an episode begins.
  void fall_idle() { active_ = false; }
  void begin(const Episode& episode, Scratch& scratch);
  // Steps once and fills row `row`; a slot whose episode ends begins the queued one.
  void step(Byte buttons, Scratch& scratch, const BatchRows& rows, std::size_t row);
  // The last four frames, oldest first.
  void write_observation(Byte* out) const;

  Console& console() { return console_; }
  GameState state() const { return game_.state(); }
  std::optional<Episode>& queued() { return queued_; }

  std::vector<Byte> snapshot() const;
  // Throws SaveStateError and changes nothing when the bytes are no snapshot.
  void restore(const Byte* data, std::size_t size);

 private:
  bool single_level() const { return level_ != kWholeGame; }
  EndReason end_of(const GameState& after, bool over) const;
  int game_reward(const GameState& after);
  void push_frame(const Byte* grey);

  const BatchSettings& settings_;
  Console console_;
  Game game_;
  bool active_ = false;
  std::optional<Episode> queued_;

  LevelIndex level_ = 0;
  SplitMix64 generator_;
  Byte seen_buttons_ = 0;  // what the console saw on the last frame
  std::int32_t steps_ = 0;
  std::int32_t frames_ = 0;
  std::int32_t furthest_x_px_ = 0;
  std::int32_t progress_step_ = 0;  // the step on which furthest x last grew
  std::int32_t x_last_ = 0, time_last_ = 0;
  std::array<std::array<Byte, kFrameBytes>, kStack> stack_{};  // a ring
  std::size_t oldest_ = 0;
};

class Batch {
 public:
  Batch(std::shared_ptr<const Cartridge> cartridge, std::size_t slots, BatchSettings settings);

  std::size_t slots() const { return slots_.size(); }
  const Cartridge& cartridge() const { return *cartridge_; }
  Slot& slot(std::size_t index) { return *slots_[index]; }
  void set_rows(const BatchRows& rows) { rows_ = rows; }

  // Starts an episode and writes the slot's row of `out`, N × 4 × 84 × 84 bytes.
  void begin(std::size_t slot, const Episode& episode, Byte* out);
  // Throws ConsoleError before any step when an active slot's action does not exist, or after all
  // slots were stepped when a game got stuck, whose slot becomes idle.
  void step(const std::int64_t* actions, Byte* out);

 private:
  std::shared_ptr<const Cartridge> cartridge_;
  BatchSettings settings_;
  std::vector<std::unique_ptr<Slot>> slots_;
  ThreadPoolPointer pool_;
  std::vector<std::unique_ptr<Scratch>> scratch_;  // one for each thread
  BatchRows rows_;
  std::vector<int> playing_;
  std::vector<std::exception_ptr> errors_;
};

}  // namespace nes
