-- A job's history is one line a failed attempt: the ms of its end, a space, the failure as JSON. The last few are kept.
-- A line break in JSON stands between its tokens only; there a space does as well.
local MOST_FAILURES = 10

local function longer_history(lines, failure)
  local longer = (lines and lines .. '\n' or '') .. whole(now_ms) .. ' ' .. string.gsub(failure, '[\r\n]', ' ')
  local _, breaks = string.gsub(longer, '\n', '\n')
  return breaks < MOST_FAILURES and longer or string.match(longer, '\n(.*)')
end
