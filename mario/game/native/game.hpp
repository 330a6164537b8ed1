// Super Mario Bros on a console: read its memory, start a level, skip to controllable frames.
//
// The order of events is that of gym-super-mario-bros 7.4.0 (`SuperMarioBrosEnv`, `NESEnv.step`).
// In Python, mario/game/smb/memory.py and stage.py do the same. Addresses: datacrystal "Super Mario
// Bros. RAM map".
#pragma once

#include <cstdint>

#include "console.hpp"
#include "types.hpp"

namespace nes {

// The 13 values of mario/game/smb/memory.py's STATE_DTYPE, in its order.
struct GameState {
  std::int32_t x_px, y_px, score, coins, time_left, life, status, world, stage, area, flag, dying,
      player_state;
};
static_assert(sizeof(GameState) == 13 * sizeof(std::int32_t));

// No level is longer. A larger x means that Mario is left of the area's start (page 255), where the
// loop of 4-4 puts him for some frames; it counts as no progress.
inline constexpr std::int32_t kMaxXPx = 0x8000;

// 0 ... 31 for "1-1" ... "8-4", or the whole game with three lives.
using LevelIndex = std::int32_t;
inline constexpr LevelIndex kWholeGame = -1;
inline constexpr LevelIndex kLevels = 32;

class Game {
 public:
  explicit Game(Console& console) : console_(console) {}

  GameState state() const;
  // Whether the episode has ended: flag or death in one level; in the whole game, no lives left or
  // the last axe (after which gym-super-mario-bros would wait forever).
  bool is_over(bool single_level) const;
  // Whether the last axe of the game was reached.
  bool is_won() const;

  // Powers the console on and skips to the first controllable frame.
  void start_level(LevelIndex level);
  // Skips to the next controllable frame, after a frame that did not end the episode. Returns the
  // number of frames skipped. Throws ConsoleError when there is no such frame.
  int skip_unplayable(bool single_level);

 private:
  Byte ram(std::size_t address) const { return console_.ram()[address]; }
  std::int32_t time_left() const;
  bool is_dying() const;
  bool is_dead() const;
  bool is_busy() const;
  bool is_world_over() const;
  bool is_flag() const;

  Console& console_;
};

}  // namespace nes
