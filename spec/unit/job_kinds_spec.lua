-- SPDX-License-Identifier: MIT
-- One kind of object for all long work in C: what a job has no answer to, it answers with nothing.
local cc = require("spec.support.cc")
local sh = require("spec.support.sh")

describe("A job in C", function()
  it("has nothing to say of jobs of other kinds", function()
    local result = sh.run({ cc.program("job_kinds") })
    assert.equal("", result.stderr)
    local nothing = "lost 0, missing 0, difference 0, divergences 0 0, %s, flags 0, found 0\n"
    local refused = "repair: conflict The job is no check\naccept: conflict The job is no check\n"
    assert.equal("step 0, all\n" .. nothing:format("a check")
      .. ("step 0, all\n" .. nothing:format("no check") .. refused):rep(2), result.stdout)
    assert.equal(0, result.code)
  end)
end)
