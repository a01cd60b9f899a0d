"""Tables of models of which parts are left alone, by what keeps these apart."""
